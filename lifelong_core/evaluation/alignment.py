"""IA and TA from features that are there already.

IA (image alignment, CLIP-I; "CLIP I2I" where the extractor is CLIP) and TA (text alignment,
CLIP-T) as in the lifelong papers, raw cosines without their factors of 100 and 2.5.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ..errors import InputError


def pairwise_alignment(generated: Tensor, references: Tensor) -> Tensor:
    """IA per picture, [G]: mean over r of cos(generated_g, reference_r).

    Features [G, D] and [R, D] of any length. The mean over all pictures is the paper's IA.
    """
    return (F.normalize(generated, dim=-1) @ F.normalize(references, dim=-1).T).mean(1)


def own_alignment(generated: Tensor, texts: Tensor) -> Tensor:
    """TA per picture, [G]: cos(generated_g, text_g). Both [G, D]; InputError for other counts."""
    if len(generated) != len(texts):
        raise InputError(f"There are {len(generated)} pictures, but {len(texts)} prompts.")
    return (F.normalize(generated, dim=-1) * F.normalize(texts, dim=-1)).sum(1)
