"""Measuring what was learned, kept and forgotten."""

from .features import FeatureSpace, clip_space, image_alignment, judge_space, text_alignment

__all__ = ["FeatureSpace", "clip_space", "image_alignment", "judge_space", "text_alignment"]
