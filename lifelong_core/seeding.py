"""Random generators made from a seed and labels, so that no draw depends on another's order."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *labels: str | int) -> int:
    """A 63-bit seed from `seed` and `labels`: stable over machines and Python versions."""
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *labels: str | int, device: str = "cpu") -> torch.Generator:
    """A fresh `torch.Generator` for (`seed`, `labels`). Never touches the global generator."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *labels))
