"""Options that the benchmarks which draw many pictures have in common."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from lifelong_core.fields import PRECISIONS


def add_drawing_options(parser: argparse.ArgumentParser, steps: int) -> None:
    """`--steps`, `--work`, `--precision`, `--device` and `--threads`."""
    parser.add_argument("--steps", type=int, default=steps, help="of sampling")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"), help="of the lessons")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="of lessons and pictures"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
