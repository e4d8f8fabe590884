"""What the loop tells its caller after every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Progress:
    """`step` of `of` is done; `losses` by term (and "loss", their weighted sum); an optional
    `preview` picture [3, H, W] in [0, 1]. `phase` names what is going on; step 0 says no more than
    that it goes on.
    """

    step: int
    of: int
    losses: Mapping[str, float]
    preview: Tensor | None = None
    phase: str = "lesson"


ProgressCallback = Callable[[Progress], None]
"""May raise anything to cancel; what was learned so far stays on disk and is resumed."""
