"""The table of methods of lifelong learning, and the calls that learn a concept with one."""

from .joint import learn_joint
from .learning import (
    CODE_VERSION,
    check_lesson,
    learn,
    lesson_key,
    lesson_settings,
    teach,
)
from .lesson_kinds import LESSON_METHODS
from .placed import placed_state
from .records import check_consolidates, check_follows, check_separate
from .replaying import check_memory, usual_features
from .table import METHODS, Method, any_prompt_state, drawing_state, newest_method, step_adapters

__all__ = [
    "CODE_VERSION",
    "LESSON_METHODS",
    "METHODS",
    "Method",
    "any_prompt_state",
    "check_consolidates",
    "check_follows",
    "check_lesson",
    "check_memory",
    "check_separate",
    "drawing_state",
    "learn",
    "learn_joint",
    "lesson_key",
    "lesson_settings",
    "newest_method",
    "placed_state",
    "step_adapters",
    "teach",
    "usual_features",
]
