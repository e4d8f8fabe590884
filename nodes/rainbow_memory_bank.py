"""The node that recalls earlier concepts for the next lesson."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..lifelong_core.errors import StateError
from ..lifelong_core.lesson import defaults_for
from ..lifelong_core.memory import RAINBOW, SELECTIONS, MemorySettings, recall, world_features
from ..lifelong_core.state import LifelongState
from .bridge import model_family, training_backbone, usual_precision
from .clip_vision import ClipVisionFeatures
from .folders import workspace
from .memory_picture import memory_picture
from .patching import without_lessons
from .progress import ComfyProgress
from .types import LifelongStateType, MemoryBankType
from .widgets import precision_input, seed_input

USUAL = MemorySettings()


class RainbowMemoryBank(io.ComfyNode):
    """Draws pictures of earlier concepts and keeps the best for the next lesson to replay."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RainbowMemoryBank",
            display_name="Rainbow Memory Bank (L2DM)",
            category="lifelong",
            description="Comes before the next Learn Concept with method 'l2dm' or 'l2dm_lora', so "
            "that earlier concepts are not forgotten: the model draws pictures of what it knows, "
            "and those that are varied and like the remembered ones are kept for the lesson to "
            "replay.",
            search_aliases=[
                "replay",
                "l2dm",
                "memory",
                "rehearsal",
                "forgetting",
                "continual learning",
            ],
            is_output_node=True,
            inputs=[*_links(), *_widgets(), *_optional()],
            outputs=[
                MemoryBankType.Output(
                    "memory", tooltip="What the next lesson replays: link it to Learn Concept."
                ),
                io.Image.Output(
                    "picture",
                    tooltip="All candidates with their scores: those that are kept in a frame, the "
                    "others pale.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        state: LifelongState,
        model: Any,
        clip: Any,
        vae: Any,
        candidates: int,
        beta: float,
        steps: int,
        limit: int,
        seed: int,
        selection: str = RAINBOW,
        features: Any = None,
        precision: str = "default",
        guidance: float = USUAL.guidance,
    ) -> io.NodeOutput:
        if not state.records:
            raise StateError("This state has learned nothing to recall; learn a concept first.")
        plain_model, plain_clip = without_lessons(model, clip, state)
        with torch.inference_mode(False):
            family = model_family(plain_model)
            usual = usual_precision(plain_model, defaults_for(family.name).precision)
            wanted = usual if precision == "default" else precision
            settings = MemorySettings(
                candidates=candidates,
                beta=beta,
                selection=selection,
                limit=limit,
                steps=steps,
                guidance=guidance,
                precision=wanted,
                seed=seed,
            )
            with training_backbone(plain_model, plain_clip, vae, wanted) as backbone:
                recollection = recall(
                    backbone,
                    state,
                    world_features() if features is None else ClipVisionFeatures(features),
                    settings=settings,
                    size=int(state.records[-1].settings.get("size", family.default_size)),
                    on_progress=ComfyProgress(),
                    workspace=workspace(),
                )
        picture = memory_picture(recollection)
        return io.NodeOutput(recollection.memory, picture, ui=ui.PreviewImage(picture, cls=cls))


def _links() -> list[io.Input]:
    return [
        LifelongStateType.Input(
            "state",
            tooltip="What was learned so far: the state that the next lesson gets too. It also "
            "holds what the lessons' pictures are remembered by.",
        ),
        io.Model.Input(
            "model",
            tooltip="The MODEL of the checkpoint, or the one that the last lesson gave. It is not "
            "changed.",
        ),
        io.Clip.Input(
            "clip",
            tooltip="The CLIP of the checkpoint, or the one that the last lesson gave. It is not "
            "changed.",
        ),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.Int.Input(
            "candidates",
            display_name="candidates per prompt",
            default=USUAL.candidates,
            min=1,
            max=256,
            tooltip="So many pictures are drawn for every remembered one, and one of them is kept. "
            "More give a better choice and take more time.",
        ),
        io.Float.Input(
            "beta",
            display_name="trade-off (β)",
            default=USUAL.beta,
            min=0.0,
            max=1000.0,
            step=0.05,
            round=False,
            tooltip="What counts more: high values keep pictures that are like the remembered "
            "ones, low values keep varied pictures.",
        ),
        io.Int.Input(
            "steps",
            default=USUAL.steps,
            min=1,
            max=1000,
            tooltip="Sampling steps per picture.",
        ),
        io.Int.Input(
            "limit",
            display_name="most pictures drawn",
            default=USUAL.limit,
            min=0,
            max=1_000_000,
            tooltip="Draw no more pictures than this, of some earlier concepts, others after every "
            "lesson. The time of a lesson then does not grow with what is known. 0 draws of all.",
        ),
        seed_input(
            "Same seed, state and settings give the same pictures; they are then taken "
            "from disk instead of drawn again."
        ),
    ]


def _optional() -> list[io.Input]:
    return [
        io.Combo.Input(
            "selection",
            optional=True,
            options=list(SELECTIONS),
            default=RAINBOW,
            tooltip="'rainbow' keeps pictures by their score; 'random' any, to compare with.",
        ),
        io.ClipVision.Input(
            "features",
            optional=True,
            tooltip="The same CLIP_VISION as at the lessons, from Load CLIP Vision. Without it the "
            "small CLIP of the demo world judges, which knows no photos.",
        ),
        precision_input("Number format of the model while it draws."),
        io.Float.Input(
            "guidance",
            display_name="guidance (share)",
            optional=True,
            advanced=True,
            default=USUAL.guidance,
            min=0.0,
            max=4.0,
            step=0.05,
            round=False,
            tooltip="Classifier-free guidance (cfg) while it draws, as a share of the model's "
            "usual one. With all of it colours grow stronger from lesson to lesson, since what was "
            "drawn is learned and drawn again. With less pictures are softer.",
        ),
    ]
