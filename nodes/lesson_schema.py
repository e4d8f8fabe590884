"""What LearnConceptTask asks for. Workflows store widgets by position: append only."""

from __future__ import annotations

from comfy_api.latest import io

from ..lifelong_core.lesson import LR_SCHEDULES
from ..lifelong_core.methods import LESSON_METHODS
from .lesson_values import DEFAULT_METHOD, LAYERS
from .types import LifelongStateType, MemoryBankType
from .widgets import precision_input, seed_input

FAMILY_DEFAULT = "0 takes the default of the model's family."


def lesson_inputs() -> list[io.Input]:
    """Required inputs, then optional ones, those for the few who want them, and later ones."""
    return [*_links(), *_widgets(), *_optional(), *_advanced(), *_memory(), *_tokens()]


def _links() -> list[io.Input]:
    return [
        io.Model.Input(
            "model",
            tooltip="A Stable Diffusion 1, 2 or XL MODEL, straight from the loader or with LoRAs. "
            "It is not changed.",
        ),
        io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint. It is not changed."),
        io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
        io.Image.Input(
            "images",
            tooltip="3 to 5 pictures of the one thing to learn, from different sides and in front "
            "of different backgrounds: a batch, or a list in which sizes may differ.",
        ),
    ]


def _widgets() -> list[io.Input]:
    return [
        io.String.Input(
            "token",
            default="my_dog",
            tooltip="A new name for the concept: letters, digits, '_' and '-'; no word that the "
            "model knows already. In prompts it is written embedding:<token>.",
        ),
        io.String.Input(
            "noun",
            display_name="class noun",
            default="dog",
            tooltip="What kind of thing it is, in one or two plain words: dog, backpack, toy.",
        ),
        io.Combo.Input(
            "method",
            options=list(LESSON_METHODS),
            default=DEFAULT_METHOD,
            tooltip="How the lesson is learned. 'lora' trains a LoRA and the token, with pictures "
            "of the class noun mixed in so that the plain noun stays as it was. 'ewc' also holds "
            "on to what earlier concepts need, with Consolidate Lesson after every lesson. The "
            "others are in the help.",
        ),
        io.Int.Input(
            "steps",
            default=0,
            min=0,
            max=100_000,
            tooltip="Training steps. More steps: closer to the pictures, in the end too close. "
            + FAMILY_DEFAULT,
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.000001,
            round=False,
            tooltip="Step size for the LoRA. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "rank",
            default=0,
            min=0,
            max=1024,
            tooltip="Rank of the LoRA. 0 takes the rank of the linked state, or for a first lesson "
            "the default of the model's family (16).",
        ),
        seed_input(
            "Same seed, pictures and settings give the same result; a finished lesson is "
            "then taken from disk instead of learned again."
        ),
    ]


def _optional() -> list[io.Input]:
    return [
        io.String.Input(
            "captions",
            optional=True,
            default="",
            multiline=True,
            placeholder="optional: one caption per line, each with embedding:<token>",
            tooltip="One line per picture, in the order of the pictures, each naming the concept "
            "as embedding:<token> <noun>. Left empty: 'a photo of embedding:<token> <noun>'.",
        ),
        LifelongStateType.Input(
            "state",
            optional=True,
            tooltip="What was learned before, from the lesson before this one or from Load "
            "Lifelong State. Without it a new state begins.",
        ),
    ]


def _advanced() -> list[io.Input]:
    return [
        io.Float.Input(
            "token_learning_rate",
            optional=True,
            advanced=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.000001,
            round=False,
            tooltip="Step size for the token's vectors. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "batch_size",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=256,
            tooltip="Pictures of the concept per step; fewer need less memory. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "accumulation",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=1024,
            tooltip="Batches per step: 4 batches of 1 learn like 1 batch of 4, with the memory of "
            "1. " + FAMILY_DEFAULT,
        ),
        io.Int.Input(
            "prior_pictures",
            optional=True,
            advanced=True,
            default=-1,
            min=-1,
            max=10_000,
            tooltip="Pictures of the class noun, drawn once by the model itself, that keep the "
            "plain noun as it is. -1 takes the default of the model's family, 0 learns without.",
        ),
        io.Int.Input(
            "resolution",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=2048,
            step=64,
            tooltip="Side of the square that pictures are brought to; smaller needs less memory. "
            + FAMILY_DEFAULT,
        ),
        io.Combo.Input(
            "layers",
            optional=True,
            advanced=True,
            options=list(LAYERS),
            default="default",
            tooltip="Which layers the LoRA changes. 'default' takes those of the linked state, or "
            "for a first lesson key and value of cross-attention.",
        ),
        io.Boolean.Input(
            "train_text_encoder",
            optional=True,
            advanced=True,
            default=False,
            tooltip="Also change the text encoder's attention. Closer to the pictures, but the "
            "words around the concept may shift. Only with methods that learn a LoRA.",
        ),
        io.Boolean.Input(
            "mirror",
            optional=True,
            advanced=True,
            default=False,
            tooltip="Also learn from mirrored pictures. Leave it off for text, logos and faces.",
        ),
        precision_input(
            "Number format of the forward pass. bf16 and fp16 need less memory on a GPU; "
            "the LoRA itself is always learned in fp32."
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            optional=True,
            advanced=True,
            default=False,
            tooltip="Needs much less memory and about a third more time.",
        ),
        io.Boolean.Input(
            "crop",
            optional=True,
            advanced=True,
            default=False,
            tooltip="Also learn from random crops of the pictures.",
        ),
        io.Combo.Input(
            "lr_schedule",
            optional=True,
            advanced=True,
            options=["default", *LR_SCHEDULES],
            default="default",
            tooltip="How the step sizes change over the lesson.",
        ),
        io.Float.Input(
            "min_snr_gamma",
            optional=True,
            advanced=True,
            default=-1.0,
            min=-1.0,
            max=50.0,
            step=0.5,
            tooltip="Min-SNR weighting of the loss over noise levels; 0 weights all alike, -1 "
            "takes the default of the model's family.",
        ),
        io.Float.Input(
            "noise_offset",
            optional=True,
            advanced=True,
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Share of the noise that is equal over a whole picture, for concepts that are "
            "very dark or very bright; 0.05 is usual.",
        ),
        io.Float.Input(
            "ewc_weight",
            optional=True,
            advanced=True,
            default=-1.0,
            min=-1.0,
            max=1_000_000.0,
            step=0.1,
            round=False,
            tooltip="Methods with 'ewc': how firmly weights that earlier concepts need are held. "
            "More keeps those better and learns the new one less. -1 takes the default.",
        ),
    ]


def _memory() -> list[io.Input]:
    return [
        MemoryBankType.Input(
            "memory",
            optional=True,
            tooltip="Methods with 'l2dm': pictures of earlier concepts to replay, from Rainbow "
            "Memory Bank with the same state. A first lesson needs none.",
        ),
        io.ClipVision.Input(
            "features",
            optional=True,
            tooltip="What the lesson's pictures are remembered by, for Rainbow Memory Bank: a "
            "CLIP_VISION from Load CLIP Vision, the same one in all lessons. Without it the small "
            "CLIP of the demo world, which knows no photos.",
        ),
    ]


def _tokens() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "layerwise_tokens",
            optional=True,
            advanced=True,
            default=False,
            tooltip="Learn one set of the token's vectors for each cross-attention layer. The "
            "MODEL and CLIP of this node and of Apply Lifelong State use them. An exported "
            "embedding, for stock nodes, holds their mean.",
        ),
        io.Boolean.Input(
            "localized_words",
            optional=True,
            advanced=True,
            default=False,
            tooltip="For pictures with several concepts: the look is learned in the concept's own "
            "words alone, wherever they stand in a prompt, so that it comes with them and does not "
            "spread to other things.",
        ),
        io.Int.Input(
            "token_count",
            optional=True,
            advanced=True,
            default=0,
            min=0,
            max=32,
            tooltip="How many vectors the token consists of. More hold more of a look; with "
            "localized_words try 4. " + FAMILY_DEFAULT,
        ),
    ]
