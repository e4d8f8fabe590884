"""The node that says what one part of the picture shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..lifelong_core.attention.regions import Region, box_mask
from ..lifelong_core.errors import InputError
from .types import RegionsType

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in shares of the picture's width and height."""


@dataclass(frozen=True)
class DrawnRegion(Region):
    """A region of a picture. concepts: a text that names those whose adapters draw it."""

    concepts: str


@dataclass(frozen=True, eq=False)
class PlacedRegion:
    """A prompt, and its place in pictures of any size: a mask [H, W], one for each picture
    [B, H, W], or a box.

    concepts: a text that names those whose adapters draw it, by default the prompt.
    """

    prompt: str
    place: Tensor | Box
    concepts: str | None = None

    @property
    def pictures(self) -> int | None:
        """How many pictures there is a mask for; None when all have the same place."""
        each = isinstance(self.place, Tensor) and self.place.ndim > 2
        return len(self.place) if each else None

    def in_picture(self, size: tuple[int, int], number: int = 0) -> DrawnRegion:
        """The region of a picture of (height, width) pixels, the `number`th of a batch."""
        if not isinstance(self.place, Tensor):
            mask = box_mask(*self.place, size)
        else:
            mask = self.place if self.pictures is None else self.place[number]
        named = self.prompt if self.concepts is None else self.concepts
        return DrawnRegion(self.prompt, mask, named)


def in_pictures(
    regions: Sequence[PlacedRegion], count: int, size: tuple[int, int]
) -> list[list[DrawnRegion]]:
    """The regions of every picture of a batch of `count`; one list where all have the same.

    Raises InputError for masks of another number of pictures.
    """
    for region in regions:
        if region.pictures not in (None, count):
            raise InputError(
                f"The region {region.prompt!r} has masks for {region.pictures} pictures, but "
                f"{count} are to be drawn: link one latent image to both nodes."
            )
    each = any(region.pictures for region in regions)
    return [
        [region.in_picture(size, number) for region in regions]
        for number in range(count if each else 1)
    ]


class RegionalConcept(io.ComfyNode):
    """One region more for the Context Controllable Sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RegionalConcept",
            display_name="Regional Concept",
            category="lifelong/regions",
            description="A part of the picture with a prompt of its own. Chain one for every "
            "concept and link the last to Context Controllable Sampler.",
            search_aliases=[
                "region",
                "regional prompt",
                "area prompt",
                "mask prompt",
                "box",
                "layout",
                "CIDM",
            ],
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a photo of embedding:my_dog dog",
                    tooltip="What this part of the picture shows. embedding:<token> draws it with "
                    "what was learned for that concept, here alone; without one the base model "
                    "draws it.",
                ),
                *_box_inputs(),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="White where the region is: from the mask editor, Load Image (as "
                    "Mask) or any other node. Of any size: it is stretched over the picture. The "
                    "box does not count then.",
                ),
                RegionsType.Input(
                    "regions",
                    optional=True,
                    tooltip="The regions before this one, from another Regional Concept.",
                ),
            ],
            outputs=[RegionsType.Output("regions", tooltip="All regions up to this one.")],
        )

    @classmethod
    def execute(
        cls,
        prompt: str,
        left: float,
        top: float,
        right: float,
        bottom: float,
        mask: Tensor | None = None,
        regions: tuple[PlacedRegion, ...] = (),
    ) -> io.NodeOutput:
        box = (left, top, right, bottom)
        place = checked_box(box, prompt) if mask is None else single_mask(mask, prompt)
        return io.NodeOutput((*regions, PlacedRegion(prompt, place)))


def checked_box(box: Box, prompt: str) -> Box:
    """`box`. Raises InputError for one that is empty or not inside the picture."""
    try:
        box_mask(*box, (1, 1))
    except InputError as error:
        raise InputError(f"The region {prompt!r}: {error}") from error
    return box


def single_mask(mask: Tensor, prompt: str) -> Tensor:
    """[H, W] of a MASK of one picture, where boxes' masks are. Raises InputError for several
    pictures, and where nothing is white."""
    owner = f"The mask of the region {prompt!r}"
    if mask.ndim > 2 and mask.numel() != mask.shape[-1] * mask.shape[-2]:
        raise InputError(
            f"{owner} holds {mask.numel() // (mask.shape[-1] * mask.shape[-2])} masks, shape "
            f"{list(mask.shape)}; a region has one. Use a Regional Concept for each of them."
        )
    drawn = mask.reshape(mask.shape[-2:]).float().cpu()
    if not drawn.any():
        raise InputError(f"{owner} is empty: paint at least one pixel of it white.")
    return drawn


def _box_inputs() -> list[io.Input]:
    edges = {
        "left": (0.0, "Where the box begins, as a share of the picture's width."),
        "top": (0.0, "Where the box begins, as a share of the picture's height."),
        "right": (0.5, "Where the box ends, as a share of the picture's width."),
        "bottom": (1.0, "Where the box ends, as a share of the picture's height."),
    }
    return [
        io.Float.Input(
            name,
            default=default,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip=f"{tooltip} Without a mask only.",
        )
        for name, (default, tooltip) in edges.items()
    ]
