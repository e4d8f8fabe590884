"""Our side of the comparison of training speed: lessons through the library's own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.everything_adapter import EverythingAdapter
from benchmarks.speed_data import BATCH, PRIOR_BATCH, SpeedData
from lifelong_core.backbone import Backbone
from lifelong_core.lesson import LessonSettings, defaults_for
from lifelong_core.methods import METHODS
from lifelong_core.objectives import denoising, prior_preservation
from lifelong_core.prompts import ConceptVectors
from lifelong_core.training import Batches, Hook, ParameterGroup, Pictures, TrainPlan, train
from lifelong_core.training.cpu import cheaper_layers
from lifelong_core.training.lesson import ADAPTER_WEIGHT_DECAY, prepare_lesson


class OurLesson:
    """Runs `plan` again and again: the weights go on, optimiser and batches start anew."""

    def __init__(self, plan: TrainPlan) -> None:
        self.plan = plan

    def trained(self) -> int:
        """Number of trained weights."""
        return sum(p.numel() for group in self.plan.groups for p in group.parameters.values())

    def run(self, steps: int, after_step: Callable[[], None], hooks: tuple[Hook, ...] = ()) -> None:
        """Train, and tell of every step."""
        train(replace(self.plan, steps=steps, hooks=hooks), lambda _: after_step())


def settings() -> LessonSettings:
    """The demo model's defaults, without the weighting of the loss that the others lack."""
    return replace(
        defaults_for("demo"), min_snr_gamma=0.0, batch_size=BATCH, prior_batch_size=PRIOR_BATCH
    )


@contextmanager
def lora_lesson(backbone: Backbone, data: SpeedData, *, token: bool) -> Iterator[OurLesson]:
    """The default lesson, with or without training the token's vector."""
    chosen = settings() if token else replace(settings(), token_learning_rate=0.0)
    lesson = prepare_lesson(backbone, data.task, chosen, None, METHODS["lora"].start)
    groups = [
        ParameterGroup(
            "adapter",
            lesson.adapter.named_parameters(),
            chosen.learning_rate,
            ADAPTER_WEIGHT_DECAY,
        )
    ]
    if token:
        groups.append(ParameterGroup("token", lesson.vectors, chosen.token_learning_rate))
    with lesson.adapter.attached(backbone), cheaper_layers(backbone.unet):
        yield OurLesson(_plan(backbone, data, lesson.all_vectors, groups))


@contextmanager
def everything_lesson(
    backbone: Backbone, adapter: EverythingAdapter, data: SpeedData
) -> Iterator[OurLesson]:
    """What ComfyUI's TrainLoraNode trains; the token keeps the noun's vector."""
    vectors = {data.token: backbone.text.noun_vector(data.noun)}
    group = ParameterGroup(
        "adapter", adapter.named_parameters(), settings().learning_rate, ADAPTER_WEIGHT_DECAY
    )
    with adapter.attached(backbone):
        yield OurLesson(_plan(backbone, data, vectors, [group]))


def _plan(
    backbone: Backbone,
    data: SpeedData,
    vectors: Mapping[str, ConceptVectors],
    groups: list[ParameterGroup],
) -> TrainPlan:
    sources = [
        Pictures("concept", data.concept[:, None], data.captions, BATCH),
        Pictures("prior", data.prior[:, None], (data.prior_prompt,) * len(data.prior), PRIOR_BATCH),
    ]
    return TrainPlan(
        device=backbone.device,
        steps=0,
        batches=Batches(backbone, sources, vectors, seed=0),
        terms=[denoising(), prior_preservation(1.0)],
        groups=groups,
    )
