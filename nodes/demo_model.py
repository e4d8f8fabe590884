"""The demo world's base model for ComfyUI's stock loaders: Stable Diffusion 1 in small."""

from __future__ import annotations

from typing import Any

import comfy.model_base
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch

MARKER = "lifelong_demo"
TEXT_WIDTH = 128
TEXT_CONFIG = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "eos_token_id": 49407,
}


class DemoTextEncoder(comfy.sd1_clip.SDClipModel):
    """CLIP text encoder of width 128, called clip_l so that LoRA and embedding keys match."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            return_projected_pooled=False,
            # A copy, because SDClipModel writes its own options into it.
            textmodel_json_config=dict(TEXT_CONFIG),
            model_options={**(model_options or {}), "model_name": "clip_l"},
        )


class DemoClip(comfy.sd1_clip.SD1ClipModel):
    """The text side as ComfyUI's CLIP object expects it."""

    def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
        super().__init__(
            device=device,
            dtype=dtype,
            model_options=model_options or {},
            clip_model=DemoTextEncoder,
        )


class DemoWordTokenizer(comfy.sd1_clip.SDTokenizer):
    """CLIP's tokenizer, for embeddings of width 128."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            embedding_size=TEXT_WIDTH,
            tokenizer_data=tokenizer_data or {},
        )


class DemoTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """The tokenizer as ComfyUI's CLIP object expects it."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            tokenizer=DemoWordTokenizer,
        )


class LifelongDemo(comfy.supported_models.SD15):
    """Matches the demo checkpoint only: the marker tensor is part of no other file."""

    unet_config = {
        "context_dim": TEXT_WIDTH,
        "model_channels": 64,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
    }
    unet_extra_config = {"num_heads": -1, "num_head_channels": 32}
    required_keys = {MARKER: None}

    def model_type(self, state_dict: Any, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION

    def clip_target(self, state_dict: Any = None) -> comfy.supported_models_base.ClipTarget:
        return comfy.supported_models_base.ClipTarget(DemoTokenizer, DemoClip)

    def process_unet_state_dict_for_saving(self, state_dict: Any) -> Any:
        # Without the marker, what the stock CheckpointSave writes could not be loaded again.
        return {**super().process_unet_state_dict_for_saving(state_dict), MARKER: torch.ones(1)}


def register_demo_model() -> None:
    """Let ComfyUI's loaders recognise the demo checkpoint. Calling it again changes nothing."""
    models = comfy.supported_models.models
    if not any(model.__name__ == LifelongDemo.__name__ for model in models):
        models.append(LifelongDemo)
