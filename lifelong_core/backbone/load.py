"""Loading a base model from one file, a diffusers folder or given tensors. Never online."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError, ModelError
from ..prompts.clip import ClipConfig, ClipText, storage_dtype
from ..prompts.stack import TextStack
from .checkpoint import (
    ZERO_SNR_KEY,
    autoencoder_layout,
    text_layout,
    text_prefix,
    unet_layout,
    usual_spelling,
)
from .codec import LatentCodec, VaeCodec
from .context_layers import family_context_layers
from .detect import refuse_foreign, single_file_family, single_file_prediction, unet_family
from .families import Family
from .keys import unet_diffusers_to_ldm
from .layout import Layout, Source, stored_shapes
from .model import Backbone
from .modules import check_shapes, empty_text, empty_unet, empty_vae, fill, shapes_of
from .reading import Tensors, component_files, open_tensors, read_config
from .schedule import BETA_END, BETA_START, TIMESTEPS, NoiseSchedule
from .text_keys import fitted, plain_layout, with_text_model
from .vae_keys import folder_layout, with_present_names

Device = torch.device | str


def load_backbone(
    path: Path | str, *, dtype: torch.dtype = torch.float32, device: Device = "cpu"
) -> Backbone:
    """Load a `.safetensors` checkpoint or a diffusers folder; nothing is ever downloaded.

    Family and prediction type are detected. The UNet gets `dtype`, the text encoders fp32 or, for
    a half-precision UNet, fp16; the VAE stays fp32. Raises FileError when there is nothing at
    `path`, ModelError, before any weight is read, for anything but a whole model of a known family.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(f"There is no base model at {path}. Check the path.")
    with torch.inference_mode(False):
        load = _load_folder if path.is_dir() else _load_file
        return load(path, dtype, device)


def backbone_from_parts(
    unet_state: Mapping[str, Tensor],
    text_states: Sequence[Mapping[str, Tensor]],
    codec: LatentCodec,
    *,
    prediction_type: str,
    dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    zero_terminal_snr: bool = False,
) -> Backbone:
    """A base model from copies of given tensors; works on inference tensors, in inference mode.

    `unet_state` has LDM names without prefix; `text_states` transformers names, with or without
    `text_model.`, in the family's order (clip_l, then clip_g). Raises ModelError for parts of no
    known family, or of different ones.
    """
    unet = _in_memory(unet_state)
    refuse_foreign(unet.shapes, "The UNet")
    family = unet_family(unet.shapes, "The UNet")
    schedule = NoiseSchedule.scaled_linear(prediction_type, zero_terminal_snr=zero_terminal_snr)
    if len(text_states) != len(family.text):
        keys = ", ".join(config.key for config in family.text)
        raise ModelError(
            f"{family.label} has {len(family.text)} text encoders ({keys}); {len(text_states)} "
            "were given. Use the CLIP that belongs to the model."
        )
    layout = {name: Source(key) for name, key in unet_diffusers_to_ldm(family.name).items()}
    parts = _Parts(family, unet, layout)
    for config, state in zip(family.text, text_states, strict=True):
        tensors = _in_memory(with_text_model(state))
        config = fitted(config, tensors.shapes)
        parts.add_text(config, tensors, plain_layout(config))
    with torch.inference_mode(False):
        return parts.build(codec, schedule, dtype, device)


class _Parts:
    """What a family's modules are read from; all shapes are checked before any is built."""

    def __init__(self, family: Family, unet: Tensors, layout: Layout) -> None:
        self.family = family
        self.unet = (unet, layout)
        self.text: list[tuple[ClipConfig, Tensors, Layout]] = []
        self.vae: tuple[Tensors, Layout] | None = None
        wanted = shapes_of(empty_unet(family))
        check_shapes("The UNet", wanted, stored_shapes(layout, unet.shapes))

    def add_text(self, config: ClipConfig, tensors: Tensors, layout: Layout) -> None:
        wanted = shapes_of(empty_text(config))
        found = stored_shapes(layout, tensors.shapes)
        check_shapes(f"The text encoder {config.key}", wanted, found)
        self.text.append((config, tensors, layout))

    def add_vae(self, tensors: Tensors, layout: Layout) -> None:
        wanted = shapes_of(empty_vae(self.family))
        check_shapes("The VAE", wanted, stored_shapes(layout, tensors.shapes))
        self.vae = (tensors, layout)

    def build(
        self,
        codec: LatentCodec | None,
        schedule: NoiseSchedule,
        dtype: torch.dtype,
        device: Device,
    ) -> Backbone:
        unet = empty_unet(self.family)
        _fill(unet, *self.unet, dtype, device)
        encoders: list[ClipText] = []
        for config, tensors, layout in self.text:
            encoder = empty_text(config)
            _fill(encoder, tensors, layout, storage_dtype(dtype), device)
            encoders.append(encoder)
        if self.vae is not None:
            vae = empty_vae(self.family)
            _fill(vae, *self.vae, torch.float32, device)
            codec = VaeCodec(vae, self.family.latent_scale)
        if codec is None:
            raise ModelError(f"There is no VAE for {self.family.label}.")
        text = TextStack(encoders, len(family_context_layers(self.family.name)))
        return Backbone(self.family, unet, text, codec, schedule.to(device))


def _fill(
    module: torch.nn.Module,
    tensors: Tensors,
    layout: Layout,
    dtype: torch.dtype,
    device: Device,
) -> None:
    def fetch(name: str) -> Tensor:
        return layout[name].read(tensors.get(layout[name].key))

    fill(module, fetch, dtype=dtype, device=device)


def _in_memory(state: Mapping[str, Tensor]) -> Tensors:
    """Tensors at hand; each is copied when it is read, for its owner may change or free it."""
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    return Tensors(shapes, lambda key: state[key].detach().clone())


def _load_file(path: Path, dtype: torch.dtype, device: Device) -> Backbone:
    with open_tensors(path) as raw:
        tensors = raw.renamed(usual_spelling)
        family = single_file_family(tensors.shapes, path.name)
        parts = _Parts(family, tensors, unet_layout(family))
        for config in family.text:
            prefix = text_prefix(family, config)
            config = fitted(config, [key for key in tensors.shapes if key.startswith(prefix)])
            parts.add_text(config, tensors, text_layout(family, config))
        parts.add_vae(tensors, autoencoder_layout(family))
        prediction = single_file_prediction(family, tensors.shapes, tensors.metadata, tensors.get)
        schedule = NoiseSchedule.scaled_linear(
            prediction, zero_terminal_snr=ZERO_SNR_KEY in tensors.shapes
        )
        return parts.build(None, schedule, dtype, device)


def _load_folder(path: Path, dtype: torch.dtype, device: Device) -> Backbone:
    if not (path / "unet").is_dir():
        index = path / "model_index.json"
        kind = read_config(index).get("_class_name") if index.is_file() else None
        found = f"a {kind} without a UNet" if kind else "no diffusers model: it has no unet folder"
        raise ModelError(f"The folder {path.name} is {found}, which is not supported.")
    schedule = _folder_schedule(path)
    with ExitStack() as stack:

        def part(name: str, stem: str) -> Tensors:
            return stack.enter_context(open_tensors(*component_files(path / name, stem)))

        unet = part("unet", "diffusion_pytorch_model")
        where = f"The folder {path.name}"
        refuse_foreign(unet.shapes, where)
        family = unet_family(unet.shapes, where)
        parts = _Parts(
            family, unet, {key: Source(key) for key in unet_diffusers_to_ldm(family.name)}
        )
        for number, config in enumerate(family.text, start=1):
            name = "text_encoder" if number == 1 else f"text_encoder_{number}"
            tensors = part(name, "model").renamed(with_text_model)
            config = fitted(config, tensors.shapes)
            parts.add_text(config, tensors, plain_layout(config))
        vae = part("vae", "diffusion_pytorch_model").renamed(with_present_names)
        parts.add_vae(vae, folder_layout(family.name))
        return parts.build(None, schedule, dtype, device)


def _folder_schedule(path: Path) -> NoiseSchedule:
    config = read_config(path / "scheduler" / "scheduler_config.json")
    usual = {
        "num_train_timesteps": TIMESTEPS,
        "beta_start": BETA_START,
        "beta_end": BETA_END,
        "beta_schedule": "scaled_linear",
    }
    other = {key: config[key] for key, value in usual.items() if config.get(key, value) != value}
    if other:
        raise ModelError(
            f"The folder {path.name} has another noise schedule than Stable Diffusion's: {other} "
            f"instead of { ({key: usual[key] for key in other}) }."
        )
    return NoiseSchedule.scaled_linear(
        config.get("prediction_type", "epsilon"),
        zero_terminal_snr=bool(config.get("rescale_betas_zero_snr", False)),
    )
