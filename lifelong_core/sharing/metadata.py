"""What a LoRA file says about itself to managers and to other programs (all values are text).

`ss_*` as kohya's trainer writes them, `modelspec.*` after the ModelSpec 1.0.1, `lifelong.*` for
this software. There are no folders, user names or pictures in it, except the preview's thumbnail.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import PureWindowsPath

import safetensors.torch
from torch import Tensor

from ..backbone.families import family_named
from ..errors import InputError
from ..files import CHECKSUM, FORMAT, VERSION, content_hash
from ..state import LifelongState

LORA_FORMAT = "lifelong_lora"
LORA_VERSION = 2
"""Of files with layer-wise concepts, which earlier software cannot read; others have version 1."""
DATE = "modelspec.date"
LAYERS = "lifelong.layers"
"""In files with layer-wise concepts: the number of cross-attention layers that have vectors."""
FAMILY = "lifelong.family"
FINGERPRINT = "lifelong.base_fingerprint"
KEPT_ENERGY = "lifelong.kept_energy"
"""Σ‖ΔW in the file‖² / Σ‖ΔW learned‖²."""

PREDICTION = {"epsilon": "epsilon", "v_prediction": "v"}
TRAINING_KEYS = {
    "ss_learning_rate": "learning_rate",
    "ss_max_train_steps": "steps",
    "ss_batch_size_per_device": "batch_size",
    "ss_gradient_accumulation_steps": "accumulation",
    "ss_min_snr_gamma": "min_snr_gamma",
    "ss_noise_offset": "noise_offset",
    "ss_seed": "seed",
}
"""Of the last lesson's settings, those that other programs show."""


@dataclass(frozen=True)
class ExportInfo:
    """What the file should say beyond the state.

    prediction_type: of the base model, "epsilon" or "v_prediction".
    base_name: the base model's file name (folders are dropped).
    title, description, author, license, tags: left out, or derived, when not given.
    date: ISO 8601; now, when not given.
    """

    prediction_type: str
    base_name: str | None = None
    title: str | None = None
    description: str | None = None
    author: str | None = None
    license: str | None = None
    tags: tuple[str, ...] = ()
    date: str | None = None

    def __post_init__(self) -> None:
        if self.prediction_type not in PREDICTION:
            raise InputError(
                f"Unknown prediction type {self.prediction_type!r}; "
                f"use {' or '.join(map(repr, PREDICTION))}."
            )


def lora_metadata(
    state: LifelongState,
    tensors: Mapping[str, Tensor],
    concepts: Mapping[str, str],
    stem: str,
    info: ExportInfo,
    thumbnail: str | None = None,
    kept_energy: float = 1.0,
) -> dict[str, str]:
    """The metadata of the file `<stem>.safetensors` that holds `tensors`; `concepts`: those of
    `concept_metadata`; kept_energy: share of the state's change that is in the file."""
    training = _training(state, tensors, stem, info)
    digest = data_hash(tensors, training)
    spec = _model_spec(state, stem, info, digest) | _optional({"modelspec.thumbnail": thumbnail})
    own = {
        FORMAT: LORA_FORMAT,
        VERSION: str(LORA_VERSION if LAYERS in concepts else 1),
        CHECKSUM: content_hash(tensors, concepts),
        FAMILY: state.family,
        FINGERPRINT: state.base_fingerprint,
        KEPT_ENERGY: f"{kept_energy:.6g}",
        **concepts,
    }
    return training | {"sshs_model_hash": digest} | spec | own


def data_hash(tensors: Mapping[str, Tensor], training: Mapping[str, str]) -> str:
    """SHA-256 (hex) of everything after the file's header: kohya's `sshs_model_hash`."""
    data = safetensors.torch.save(dict(tensors), dict(training))
    header = int.from_bytes(data[:8], "little")
    return hashlib.sha256(memoryview(data)[8 + header :]).hexdigest()


def trigger(token: str, noun: str) -> str:
    """How the concept is called where tokens are written as plain words."""
    return f"{token} {noun}"


def _training(
    state: LifelongState, tensors: Mapping[str, Tensor], stem: str, info: ExportInfo
) -> dict[str, str]:
    triggers = [trigger(concept.token, concept.noun) for concept in state.concepts]
    settings = dict(state.records[-1].settings) if state.records else {}
    # One key for all concepts: managers look into the first key only.
    frequency = {"concepts": dict.fromkeys(triggers, 1)}
    datasets = [{"is_dreambooth": True, "subsets": [{"class_tokens": text} for text in triggers]}]
    numbers = {
        name: str(settings[key])
        for name, key in TRAINING_KEYS.items()
        if isinstance(settings.get(key), (int, float)) and not isinstance(settings[key], bool)
    }
    return {
        "ss_base_model_version": _base_version(state.family, info.prediction_type),
        "ss_v2": str(state.family == "sd2"),
        "ss_zero_terminal_snr": "False",
        **_network(tensors),
        "ss_output_name": stem,
        "ss_tag_frequency": json.dumps(frequency),
        "ss_datasets": json.dumps(datasets),
        **numbers,
        **_optional({"ss_sd_model_name": _file_name(info.base_name)}),
    }


def _network(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What kind of weights the file has: a LoRA, or whole changes as LyCORIS' "full" has them."""
    ranks = {len(value) for key, value in tensors.items() if key.endswith(".lora_down.weight")}
    if not ranks:
        return {
            "ss_network_module": "lycoris.kohya",
            "ss_network_args": json.dumps({"algo": "full", "train_norm": "True"}),
        }
    alphas = {value.item() for key, value in tensors.items() if key.endswith(".alpha")}
    (rank,), (alpha,) = ranks, alphas
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
    }


def _model_spec(state: LifelongState, stem: str, info: ExportInfo, digest: str) -> dict[str, str]:
    triggers = [trigger(concept.token, concept.noun) for concept in state.concepts]
    listed = ", ".join(triggers)
    phrases = ", ".join(concept.phrase for concept in state.concepts)
    description = info.description or (f"Learned concepts: {listed}" if listed else None)
    tags = dict.fromkeys((*(concept.noun for concept in state.concepts), *info.tags))
    side = family_named(state.family).for_prediction(info.prediction_type).default_size
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _architecture(state.family, info.prediction_type) + "/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": info.title or stem,
        DATE: info.date or datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": PREDICTION[info.prediction_type],
        "modelspec.hash_sha256": f"0x{digest}",
        **_optional(
            {
                "modelspec.description": description,
                "modelspec.author": info.author,
                "modelspec.license": info.license,
                "modelspec.tags": ", ".join(tags),
                "modelspec.trigger_phrase": listed,
                "modelspec.usage_hint": (
                    f"In ComfyUI write: {phrases}. Elsewhere: {listed}." if listed else None
                ),
            }
        ),
    }


def _architecture(family: str, prediction_type: str) -> str:
    if family == "sd2":
        return f"stable-diffusion-v2-{'768-v' if prediction_type == 'v_prediction' else '512'}"
    return {
        "sd1": "stable-diffusion-v1",
        "sdxl": "stable-diffusion-xl-v1-base",
        "demo": "lifelong-demo",
    }[family]


def _base_version(family: str, prediction_type: str) -> str:
    """Names that LoRA managers know; kohya's own "sd_v1" is shown raw by them."""
    if family == "sd2":
        return f"sd_2.1_{'768_v' if prediction_type == 'v_prediction' else '512'}"
    return {"sd1": "sd_1.5", "sdxl": "sdxl_base_v1-0", "demo": "lifelong_demo"}[family]


def _file_name(path: str | None) -> str | None:
    """The last part, whichever system's separators the path has."""
    return PureWindowsPath(path).name if path else None


def _optional(values: Mapping[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in values.items() if value}
