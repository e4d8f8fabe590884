"""One lesson from its input to the new state, with what a method adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..adapters import Adapter, build_adapter
from ..adapters.spec import NORM_PARTS
from ..backbone import Backbone
from ..concepts import Concept, ConceptTask
from ..lesson import LessonSettings
from ..localized_words import localized_nouns
from ..memory import ShortTermMemory
from ..objectives import Term
from ..prompts import ConceptVectors
from ..sampling import generate
from ..seeding import derive_seed
from ..state import LifelongState, TaskRecord
from .batches import Batches, Pictures
from .cpu import cheaper_layers
from .localized import LocalizedWords
from .loop import TOTAL, Hook, TrainPlan, train
from .optimizer import ParameterGroup
from .precision import autocast_dtype
from .priors import prior_latents, prior_prompt
from .progress import Progress, ProgressCallback
from .session import Session, Snapshot
from .views import encode_views

ADAPTER_WEIGHT_DECAY = 1e-2
NORM_ENDINGS = tuple(f".{part}" for part in NORM_PARTS)
PREVIEW_STEPS = 15


@dataclass(frozen=True)
class Lesson:
    """What the parts of a method may look at.

    adapter: the one that is trained; vectors: the new token's, per text encoder; state: the
    knowledge before the lesson, None for a first one; memory: pictures of earlier concepts to
    replay, for methods that do.
    """

    backbone: Backbone
    task: ConceptTask
    settings: LessonSettings
    state: LifelongState | None
    adapter: Adapter
    vectors: dict[str, nn.Parameter]
    memory: ShortTermMemory | None = None

    @property
    def all_vectors(self) -> dict[str, ConceptVectors]:
        """Token -> vectors of every concept, the new one's trainable."""
        known = self.state.vectors_on(self.backbone.device) if self.state is not None else {}
        return known | {self.task.token: self.vectors}


def prepare_lesson(
    backbone: Backbone,
    task: ConceptTask,
    settings: LessonSettings,
    state: LifelongState | None,
    start: Callable[[Lesson], None],
    memory: ShortTermMemory | None = None,
) -> Lesson:
    """A lesson with a fresh adapter, put into its starting position by `start`.

    Every vector of the token, in all layers, starts as the mean of the noun's token vectors.
    """
    adapter = build_adapter(settings.adapter, backbone, seed=settings.seed)
    noun = backbone.text.noun_vector(task.noun)
    layers = (backbone.text.layers,) if settings.layerwise_tokens else ()
    vectors = {
        key: nn.Parameter(
            value.to(backbone.device).repeat(*layers, settings.token_count, 1),
            requires_grad=settings.token_learning_rate > 0.0,
        )
        for key, value in noun.items()
    }
    for name, parameter in adapter.named_parameters().items():
        norm = name.endswith(NORM_ENDINGS)
        rate = settings.norm_learning_rate if norm else settings.learning_rate
        parameter.requires_grad_(rate > 0.0)
    lesson = Lesson(backbone, task, settings, state, adapter, vectors, memory)
    start(lesson)
    return lesson


def run_lesson(
    lesson: Lesson,
    terms: Sequence[Term],
    *,
    hooks: Sequence[Hook] = (),
    session: Session | None,
    priors: Path | None,
    on_progress: ProgressCallback | None,
    preview_every: int = 0,
) -> Snapshot:
    """Train the lesson's adapter and vectors in place.

    Raises what `train` raises. The base model is as it was afterwards, in every case.
    """
    drawing = _heartbeat(on_progress, lesson.settings.steps, "preview picture")
    # Replayed pictures of concepts that were learned so are drawn so, too.
    localized = localized_nouns(lesson.state)
    if lesson.settings.localized_words:
        localized[lesson.task.token] = lesson.task.noun
    return train_adapter(
        lesson,
        lesson_pictures(lesson, priors, on_progress),
        lesson.all_vectors,
        parameter_groups(lesson),
        terms,
        localized=localized,
        hooks=hooks,
        session=session,
        on_progress=on_progress,
        preview=lambda: preview_picture(lesson, drawing),
        preview_every=preview_every,
    )


def train_adapter(
    lesson: Lesson,
    sources: Sequence[Pictures],
    vectors: Mapping[str, ConceptVectors],
    groups: Sequence[ParameterGroup],
    terms: Sequence[Term],
    *,
    localized: Mapping[str, str],
    hooks: Sequence[Hook] = (),
    session: Session | None,
    on_progress: ProgressCallback | None,
    preview: Callable[[], Tensor] | None = None,
    preview_every: int = 0,
) -> Snapshot:
    """Train `groups` on `sources` with the lesson's adapter attached and by its settings.

    vectors: token -> vectors of all concepts that the prompts of `sources` may name.
    localized: token -> noun of those that are read in their own words alone.
    """
    backbone, settings = lesson.backbone, lesson.settings
    with lesson.adapter.attached(backbone), cheaper_layers(backbone.unet):
        plan = TrainPlan(
            device=backbone.device,
            steps=settings.steps,
            batches=Batches(
                backbone,
                sources,
                vectors,
                seed=settings.seed,
                noise_offset=settings.noise_offset,
                trains_text_encoder=settings.adapter.text_encoder,
                localized=LocalizedWords(localized, settings.seed) if localized else None,
            ),
            terms=terms,
            groups=groups,
            accumulation=settings.accumulation,
            precision=settings.precision,
            lr_schedule=settings.lr_schedule,
            warmup=settings.warmup,
            hooks=hooks,
            preview=preview,
            preview_every=preview_every,
            session=session,
            memory_advice=memory_advice(settings),
        )
        with backbone.checkpointed(settings.gradient_checkpointing):
            return train(plan, on_progress)


def lesson_pictures(
    lesson: Lesson, priors: Path | None, on_progress: ProgressCallback | None
) -> list[Pictures]:
    """The concept's pictures; unless there shall be none, those of the plain noun and of earlier
    concepts' nouns; and what the lesson replays.
    """
    backbone, task, settings = lesson.backbone, lesson.task, lesson.settings
    views = encode_views(
        backbone, task.images, flip=settings.flip, crop=settings.crop, seed=settings.seed
    )
    sources = [Pictures("concept", views, task.captions, settings.batch_size)]
    if settings.prior_count:
        sources.append(_prior_pictures(lesson, priors, on_progress))
    if lesson.memory is not None:
        memory = lesson.memory
        views = encode_views(backbone, memory.images, flip=False, crop=False, seed=settings.seed)
        size = settings.replay_batch_size
        sources.append(Pictures("replay", views, memory.prompts, size, memory.concepts))
    return sources


def _prior_pictures(
    lesson: Lesson, folder: Path | None, on_progress: ProgressCallback | None
) -> Pictures:
    """The base model's pictures of the lesson's noun and of earlier nouns, each equally often."""
    backbone, settings, noun = lesson.backbone, lesson.settings, lesson.task.noun
    counts = {noun: settings.prior_count}
    if settings.earlier_prior_count and lesson.state is not None:
        earlier = dict.fromkeys(concept.noun for concept in lesson.state.concepts)
        counts = dict.fromkeys(earlier, settings.earlier_prior_count) | counts
    latents = {
        name: prior_latents(
            backbone,
            name,
            count,
            size=lesson.task.images.shape[-1],
            seed=settings.seed,
            autocast=autocast_dtype(settings.precision),
            folder=folder,
            on_progress=_heartbeat(on_progress, settings.steps, "prior pictures"),
        )
        for name, count in counts.items()
    }
    prompts = tuple(prior_prompt(name) for name, count in counts.items() for _ in range(count))
    groups = tuple(place for place, count in enumerate(counts.values()) for _ in range(count))
    views = torch.cat(list(latents.values()))[:, None]
    size = settings.prior_batch_size
    return Pictures("prior", views, prompts, size, groups if len(counts) > 1 else ())


def finished_state(lesson: Lesson, method: str, result: Snapshot) -> LifelongState:
    """The state after the lesson: the adapter as it is now, and one more record."""
    task, settings, state = lesson.task, lesson.settings, lesson.state
    weights = lesson.adapter.state()
    record = TaskRecord(
        concept=Concept(task.token, task.noun, lesson.vectors),
        task_hash=task.content_hash,
        adapter=weights,
        settings={"method": method, "size": task.images.shape[-1], **settings.to_json()},
        metrics=loss_metrics(result),
    )
    return LifelongState(
        family=lesson.backbone.family.name,
        base_fingerprint=lesson.backbone.fingerprint,
        adapter_spec=settings.adapter,
        adapter=weights,
        records=(*(state.records if state is not None else ()), record),
        extras=state.extras if state is not None else {},
    )


def unfinished_state(lesson: Lesson, method: str) -> LifelongState:
    """The state with the weights as they are after a lesson that broke off."""
    empty = Snapshot(0, (TOTAL,), torch.zeros(0, 1, dtype=torch.float64), 0.0)
    return finished_state(lesson, method, empty)


def preview_picture(lesson: Lesson, on_step: Callable[[], None] | None = None) -> Tensor:
    """A picture [3, H, W] of the concept as it is learned so far; always from the same noise.

    `on_step` is called after every sampling step and may raise to cancel.
    """
    settings, size = lesson.settings, lesson.task.images.shape[-1]
    concept = Concept(lesson.task.token, lesson.task.noun, lesson.vectors)
    return generate(
        lesson.backbone,
        [f"a photo of {lesson.task.phrase}"],
        seed=derive_seed(settings.seed, "preview"),
        steps=PREVIEW_STEPS,
        size=(size, size),
        vectors=lesson.all_vectors,
        localized=(concept,) if settings.localized_words else (),
        autocast=autocast_dtype(settings.precision),
        on_progress=(lambda _done, _of: on_step()) if on_step else None,
    )[0]


def _heartbeat(
    on_progress: ProgressCallback | None, steps: int, phase: str
) -> Callable[[], None] | None:
    """Tells `on_progress` between training steps that `phase` goes on, so that it can cancel."""
    if on_progress is None:
        return None
    beat = Progress(0, steps, {}, None, phase)
    return lambda: on_progress(beat)


def memory_advice(settings: LessonSettings) -> str:
    """The next setting to change when memory runs out, with its values."""
    batch, prior = settings.batch_size, settings.prior_batch_size
    if not settings.gradient_checkpointing:
        return "Turn gradient_checkpointing on: the same result in more time."
    if batch > 1 or (prior > 1 and settings.prior_count):
        return (
            f"Use batch_size {max(1, batch // 2)} and prior_batch_size {max(1, prior // 2)} with "
            f"accumulation {settings.accumulation * 2}: the same number of pictures per step."
        )
    if settings.precision == "fp32":
        return "Use precision bf16 (on older cards fp16) and load the base model in it."
    return "Use smaller pictures, for example 3/4 of the side, or a card with more memory."


def parameter_groups(lesson: Lesson) -> list[ParameterGroup]:
    """The adapter's weights and the token's vectors, as far as they are trained."""
    settings = lesson.settings
    groups = adapter_groups(
        lesson.adapter, settings.learning_rate, settings.norm_learning_rate, ADAPTER_WEIGHT_DECAY
    )
    token = ParameterGroup("token", lesson.vectors, settings.token_learning_rate)
    return [*groups, token] if token.learning_rate > 0.0 else groups


def adapter_groups(
    adapter: Adapter, learning_rate: float, norm_learning_rate: float, weight_decay: float = 0.0
) -> list[ParameterGroup]:
    """The adapter's weights, as far as they are trained.

    Weights that a spectral adapter has on norms have a rate of their own.
    """
    weights = adapter.named_parameters()
    norms = {name: value for name, value in weights.items() if name.endswith(NORM_ENDINGS)}
    others = {name: value for name, value in weights.items() if name not in norms}
    groups = [
        ParameterGroup("adapter", others, learning_rate, weight_decay),
        ParameterGroup("norms", norms, norm_learning_rate, weight_decay),
    ]
    return [group for group in groups if group.parameters and group.learning_rate > 0.0]


def loss_metrics(result: Snapshot) -> dict[str, object]:
    """What a record tells of a run.

    Losses are rounded to six digits, which keeps a state of many concepts small.
    """
    columns = {
        name: [float(f"{value:.6g}") for value in result.losses[:, index].tolist()]
        for index, name in enumerate(result.columns)
    }
    total = columns.pop(TOTAL)
    return {"loss": total, "terms": columns, "steps": result.step, "seconds": result.seconds}
