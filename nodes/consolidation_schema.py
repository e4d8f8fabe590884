"""What ConsolidateEWC-DC asks for. Workflows store widgets by position: append only."""

from __future__ import annotations

from comfy_api.latest import io

from .consolidation_values import PHASES
from .lesson_schema import FAMILY_DEFAULT
from .types import LifelongStateType
from .widgets import precision_input, seed_input


def consolidation_inputs() -> list[io.Input]:
    """Required inputs, then optional ones, then those for the few who want them."""
    return [*_links(), *_widgets(), *_optional(), *_advanced()]


def _links() -> list[io.Input]:
    return [
        LifelongStateType.Input("state", tooltip="The state that the lesson gave."),
        io.Model.Input(
            "model",
            tooltip="The MODEL of the checkpoint, or the one that the lesson gave. It is not "
            "changed.",
        ),
        io.Clip.Input(
            "clip",
            tooltip="The CLIP of the checkpoint, or the one that the lesson gave. It is not "
            "changed.",
        ),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
        io.Image.Input(
            "images",
            tooltip="The pictures of the lesson just learned: the same link as at Learn Concept. "
            "Other pictures are refused. They are used, and not stored.",
        ),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.Combo.Input(
            "phases",
            options=list(PHASES),
            default=next(iter(PHASES)),
            tooltip="DSC: the model is taught by itself as it was after an earlier lesson, so that "
            "it regains what this lesson made it lose. Fisher: notes which weights the concept "
            "depends on; later lessons with method 'ewc' change those less. A first concept has "
            "nothing to regain: only Fisher does something then.",
        ),
        io.Boolean.Input(
            "classifier_terms",
            display_name="classifier terms (DC)",
            default=True,
            tooltip="Also look at how well the model tells its concepts apart (diffusion "
            "classifier scores). Off: plain EWC and plain distillation.",
        ),
        io.Int.Input(
            "subset",
            display_name="concepts compared (k)",
            default=5,
            min=2,
            max=1000,
            tooltip="How many concepts the Fisher tells apart at a time: the plain noun, the new "
            "one, and k - 2 earlier ones, drawn anew each time. 2 compares with the plain noun "
            "only. More than there are takes all.",
        ),
        io.Float.Input(
            "delta",
            display_name="classifier share in Fisher (δ)",
            default=0.5,
            min=0.0,
            max=100.0,
            step=0.05,
            round=False,
            tooltip="How much telling the concepts apart counts in the Fisher, beside drawing "
            "the new one well.",
        ),
        io.Float.Input(
            "gamma",
            display_name="classifier weight in DSC (γ)",
            default=0.1,
            min=0.0,
            max=1000.0,
            step=0.05,
            round=False,
            tooltip="Weight of passing on the scores. 0 leaves them out.",
        ),
        io.Float.Input(
            "distillation_weight",
            display_name="distillation weight (λ)",
            default=1.5,
            min=0.0,
            max=1000.0,
            step=0.1,
            round=False,
            tooltip="Weight of drawing as the teachers do.",
        ),
        io.Float.Input(
            "temperature",
            display_name="temperature in Fisher (τ)",
            default=1.0,
            min=1e-6,
            max=1e6,
            step=0.001,
            round=False,
            tooltip="Of the scores in the Fisher. The lower, the sharper they tell concepts apart. "
            "If the report calls the scores inert, try 0.01 or 0.001.",
        ),
        seed_input(
            "Same seed, state, pictures and settings give the same result; a finished "
            "consolidation is then taken from disk instead of done again."
        ),
    ]


def _optional() -> list[io.Input]:
    return [
        io.String.Input(
            "captions",
            optional=True,
            default="",
            multiline=True,
            placeholder="the same captions as in the lesson; empty if it had none",
            tooltip="The captions of the lesson: the same text or link as at Learn Concept.",
        ),
    ]


def _advanced() -> list[io.Input]:
    return [
        io.Int.Input(
            "distillation_iterations",
            display_name="iterations of DSC",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=100_000,
            tooltip="Steps of distilling. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "fisher_iterations",
            display_name="iterations of Fisher",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=100_000,
            tooltip="Batches that the Fisher is estimated from; at least 2. " + FAMILY_DEFAULT,
        ),
        io.Float.Input(
            "teacher_temperature",
            optional=True,
            advanced=True,
            default=0.05,
            min=1e-6,
            max=1e6,
            step=0.001,
            round=False,
            tooltip="Of the teachers' scores in DSC.",
        ),
        io.Float.Input(
            "student_temperature",
            optional=True,
            advanced=True,
            default=1.0,
            min=1e-6,
            max=1e6,
            step=0.001,
            round=False,
            tooltip="Of the student's scores in DSC.",
        ),
        io.Float.Input(
            "learning_rate",
            optional=True,
            advanced=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.000001,
            round=False,
            tooltip="Step size of DSC. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "batch_size",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=256,
            tooltip="Pictures per batch; each is seen with several concepts at once, so fewer need "
            "much less memory. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "accumulation",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=1024,
            tooltip="Batches per iteration. " + FAMILY_DEFAULT,
        ),
        precision_input(
            "Number format of the forward pass. bf16 and fp16 need less memory on a GPU; "
            "weights and Fisher are always fp32."
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            optional=True,
            advanced=True,
            default=False,
            tooltip="Needs much less memory and about a third more time.",
        ),
    ]
