"""Runs inside ComfyUI's own process: what surrounds a lesson in ComfyUI."""

from __future__ import annotations

from inside import backbone, comfy, loaded, output, pack, torch


def check_other_models_leave_the_memory_for_a_lesson() -> None:
    model, clip, vae = loaded()
    output(model)
    assert comfy.model_management.loaded_models()
    with backbone(model, clip, vae):
        assert not comfy.model_management.loaded_models()


def check_a_cancel_is_seen_at_the_next_step() -> None:
    management = comfy.model_management
    progress = pack("lifelong_core.training.progress").Progress
    bar = pack("nodes.progress").ComfyProgress()
    for step in range(4):  # quick steps, of which ComfyUI's own bar skips some
        bar(progress(step, 9, {}))
    management.interrupt_current_processing(True)
    try:
        bar(progress(4, 9, {}))
    except management.InterruptProcessingException:
        bar(progress(5, 9, {}))  # one cancel ends one lesson
    else:
        raise AssertionError("not cancelled")


def check_vae_names_and_sizes_are_comfyuis() -> None:
    """On the meta device, of ComfyUI's own autoencoder in the configuration of SD 1, 2 and XL."""
    from comfy.ldm.models.autoencoder import AutoencoderKL

    with torch.device("meta"):
        theirs = AutoencoderKL(
            ddconfig={
                "double_z": True,
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
            embed_dim=4,
        )
    expected = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    layout = pack("lifelong_core.backbone.vae_keys").vae_layout
    shapes = pack("lifelong_core.backbone.modules").vae_shapes
    for family in ("sd1", "sd2", "sdxl"):
        ours = {
            source.key: shapes(family)[name] + (1, 1) * source.pointwise
            for name, source in layout(family).items()
        }
        assert ours == expected, family
