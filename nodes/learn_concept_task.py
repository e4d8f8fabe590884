"""The node that teaches one concept."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..lifelong_core.memory import FeatureModel, ShortTermMemory
from ..lifelong_core.methods import check_follows, drawing_state, learn, usual_features
from ..lifelong_core.state import LifelongState
from .bridge import model_family, training_backbone, usual_precision
from .clip_vision import ClipVisionFeatures
from .folders import workspace
from .lesson_schema import lesson_inputs
from .lesson_values import lesson_settings, lesson_task, only, usual_settings
from .loss_plot import loss_plot
from .patching import put_on, without_lessons
from .progress import ComfyProgress
from .types import LifelongStateType

PREVIEWS = 12
PREVIEW_STEPS = 10
"""So many preview pictures per lesson, so many steps apart at least: they cost time to draw."""


class LearnConceptTask(io.ComfyNode):
    """One lesson: pictures of a concept in, a model that can draw it out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LearnConceptTask",
            display_name="Learn Concept",
            category="lifelong",
            description="Teaches the model one concept of your own (a pet, a toy, a backpack) from "
            "a few pictures. The new MODEL and CLIP draw it when a prompt says "
            "'embedding:<token> <noun>'; link the state into the next lesson to teach more.",
            search_aliases=[
                "train lora",
                "dreambooth",
                "textual inversion",
                "personalization",
                "teach concept",
                "fine-tune",
            ],
            # A list of pictures of different sizes is one lesson, not one lesson per picture.
            is_input_list=True,
            is_output_node=True,
            inputs=lesson_inputs(),
            outputs=[
                LifelongStateType.Output(
                    "state",
                    tooltip="Everything learned so far: for the next lesson, to save or to export.",
                ),
                io.Model.Output(
                    "model",
                    tooltip="The MODEL with all concepts of the state; with method 'cidm', for "
                    "prompts with the new one.",
                ),
                io.Clip.Output(
                    "clip",
                    tooltip="The CLIP with all tokens of the state: write embedding:<token> <noun> "
                    "in a prompt. No embedding file is needed.",
                ),
                io.Image.Output("loss_plot", tooltip="The lesson's loss over its steps."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: list[Any],
        clip: list[Any],
        vae: list[Any],
        images: list[torch.Tensor],
        token: list[str],
        noun: list[str],
        method: list[str],
        captions: list[str] | None = None,
        state: list[LifelongState] | None = None,
        resolution: list[int] | None = None,
        memory: list[ShortTermMemory] | None = None,
        features: list[Any] | None = None,
        **widgets: list[Any],
    ) -> io.NodeOutput:
        given = only("state", state) if state else None
        plain_model, plain_clip = without_lessons(only("model", model), only("clip", clip), given)
        values = {name: only(name, value) for name, value in widgets.items()}
        size = only("resolution", resolution) if resolution else 0
        chosen = only("method", method)
        check_follows(given, chosen)
        with torch.inference_mode(False):
            if features:
                remembered_by: FeatureModel | None = ClipVisionFeatures(only("features", features))
            else:
                remembered_by = usual_features(given, chosen)
            family = model_family(plain_model)
            usual = usual_settings(family.name, given, chosen)
            usual = replace(usual, precision=usual_precision(plain_model, usual.precision))
            settings = lesson_settings(usual, **values)
            task = lesson_task(
                only("token", token),
                only("noun", noun),
                images,
                captions,
                size=size or family.default_size,
            )
            copy = training_backbone(plain_model, plain_clip, only("vae", vae), settings.precision)
            with copy as backbone:
                learned = learn(
                    backbone,
                    task,
                    state=given,
                    method=chosen,
                    settings=settings,
                    memory=only("memory", memory) if memory else None,
                    features=remembered_by,
                    on_progress=ComfyProgress(),
                    preview_every=max(PREVIEW_STEPS, settings.steps // PREVIEWS),
                    workspace=workspace(),
                )
                drawn = drawing_state(learned, task.phrase, backbone.text)
        plot = loss_plot(learned.records[-1].metrics["loss"], f"loss, {task.phrase}")
        return io.NodeOutput(
            learned,
            *put_on(plain_model, plain_clip, drawn),
            plot,
            ui=ui.PreviewImage(plot, cls=cls),
        )
