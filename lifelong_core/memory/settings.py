"""How a lesson's memory of earlier concepts is drawn and chosen, documented once."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..fields import PRECISIONS, check_fields, choice, number
from .selection import RAINBOW, SELECTIONS


@dataclass(frozen=True)
class MemorySettings:
    """How pictures to replay are made. Every field's metadata holds `help` and its limits.

    L2DM gives no values. With β = 1 both terms of Eq 5 count alike: cosines of pictures of one
    class spread as far as the mean of 1 - cosine.

    Raises InputError for values out of range, and for a limit that leaves not one prompt.
    """

    candidates: int = number(8, "pictures drawn per remembered prompt (η)", 1, 256)
    beta: float = number(
        1.0, "likeness to the remembered picture against variety (β of Eq 5)", 0.0, 1e6
    )
    selection: str = choice(
        RAINBOW, "which candidates are kept: by the score of Eq 5, or at random", SELECTIONS
    )
    limit: int = number(
        0, "most pictures drawn per lesson, of some earlier concepts; 0 draws all", 0, 1_000_000
    )
    steps: int = number(20, "sampling steps per picture", 1, 1000)
    guidance: float = number(
        0.5,
        "classifier-free guidance, as a share of the base model's usual: the contrast that it "
        "adds is learned, and added to when the next lesson's memory is drawn",
        0.0,
        4.0,
    )
    precision: str = choice("fp32", "number format of the model while it draws", PRECISIONS)
    seed: int = number(0, "same seed, state and settings: same pictures", 0, 2**64 - 1)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.limit and self.limit < self.candidates:
            raise InputError(
                f"limit is {self.limit}, which is less than the {self.candidates} candidates of "
                f"one prompt. Set it to {self.candidates} or more, or to 0 for no limit."
            )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for headers and hashes."""
        return dataclasses.asdict(self)
