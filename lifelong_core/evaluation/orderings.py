"""What the papers say about the order of methods, held against our results, and what our defaults
rest on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..lesson import LessonSettings
from ..methods import METHODS
from .interval import Interval, Values, interval, paired_difference, pairs_of
from .ways import ADAPTERS, BETWEEN


class Metric(NamedTuple):
    """What methods are ordered by, and whether much of it is good."""

    title: str
    high: bool = False


METRICS = {
    "a_mmd": Metric("A_MMD"),
    "kid": Metric("KID"),
    "ia": Metric("IA ↑", high=True),
    "tfr_ia": Metric("TFR-IA ↓"),
}
DISTANCES = ("a_mmd", "kid")
"""What "Mining your own secrets" orders by."""

L2DM_METRICS = ("ia", "tfr_ia")
L2DM_BASELINES = tuple(
    f"{name}{ending}"
    for name in ("dreambooth_lora", "custom_diffusion", "svdiff")
    for ending in ("", "_ewc", "_lwf")
)

SINGLE = tuple(
    name
    for name, method in METHODS.items()
    if method.one_adapter
    and method.replays is None
    and method.settings(LessonSettings()).learning_rate
)
"""Replay-free continual methods that draw every concept with one adapter, which they train."""


class Statement(NamedTuple):
    """`method` is better than the best of `rivals` (worse than the worst of them) in `metrics`."""

    text: str
    method: str
    rivals: tuple[str, ...]
    metrics: tuple[str, ...] = DISTANCES
    worse: bool = False


def _singles_but(method: str) -> tuple[str, ...]:
    """`SINGLE` without `method`."""
    return tuple(name for name in SINGLE if name != method)


STATEMENTS = (
    Statement("DSC EWC DC is the best single adapter", "dsc_ewc_dc", _singles_but("dsc_ewc_dc")),
    Statement("EWC DC is better than EWC", "ewc_dc", ("ewc",)),
    Statement("EWC is better than C-LoRA", "ewc", ("c_lora",)),
    Statement("EWC is better than sequential LoRA", "ewc", ("lora",)),
    Statement("EWC DC is better than sequential LoRA", "ewc_dc", ("lora",)),
    Statement("LoRA merge is worst", "lora_merge", _singles_but("lora_merge"), worse=True),
    Statement(
        "Memories drawn with half the guidance are better than with all of it",
        "l2dm_lora",
        ("l2dm_lora+memory.guidance=1",),
    ),
    Statement("L²DM is better than each of its baselines", "l2dm", L2DM_BASELINES, L2DM_METRICS),
    Statement("L²DM is better than its adapter without replay", "l2dm", ("svdiff",), L2DM_METRICS),
    Statement("L²DM is better than without TAME", "l2dm", ("l2dm_without_tame",), L2DM_METRICS),
    Statement("L²DM is better than without ECD", "l2dm", ("l2dm_without_ecd",), L2DM_METRICS),
    Statement("L²DM is better than with a LoRA", "l2dm", ("l2dm_lora",), L2DM_METRICS),
    Statement(
        "Rainbow memories are better than random ones", "l2dm", ("l2dm_random",), L2DM_METRICS
    ),
)


def orderings(
    methods: Sequence[str], values_of: Callable[[str, str], Values]
) -> dict[str, dict[str, Any]]:
    """Statement -> `holds` and `difference`, in each of its metrics.

    difference: how far the metric is from the rival's, the way that the statement wants it, with
    its 95 % interval over paired concepts and seeds. It holds when the whole interval is above 0;
    a single value, which has no interval, shows nothing.
    values_of: (method, metric) -> its values. Statements about methods without runs are left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for statement in STATEMENTS:
        rivals = [name for name in statement.rivals if name in methods]
        if statement.method not in methods or not rivals:
            continue
        for metric in statement.metrics:
            own = values_of(statement.method, metric)
            others = {name: values_of(name, metric) for name in rivals}
            higher = METRICS[metric].high != statement.worse
            rival = _nearest(others, higher)
            pair = (own, others[rival]) if higher else (others[rival], own)
            difference = paired_difference(*pair)
            if difference is not None:
                found[f"{statement.text} ({METRICS[metric].title})"] = {
                    "holds": difference.low > 0.0 and pairs_of(*pair) > 1,
                    "difference": list(difference),
                    "against": rival,
                }
    return found


def _nearest(others: Mapping[str, Values], higher: bool) -> str:
    """The rival that is hardest to surpass, or to fall below: with the highest, the lowest mean."""
    last = float("-inf") if higher else float("inf")

    def mean(name: str) -> float:
        found: Interval | None = interval(others[name])
        return found.mean if found is not None else last

    return max(others, key=mean) if higher else min(others, key=mean)


def best_single_adapter(
    kept: Mapping[str, Sequence[float] | None], streams: Mapping[str, int]
) -> dict[str, Any] | None:
    """The method of `SINGLE`, with any kind of adapter, that keeps the most; None without one.

    Of methods on fewer streams than another, and with settings that were chosen on these streams,
    none competes. kept: method -> its `kept_gain` interval; streams: method -> how many it has.
    """
    known = {name: value for name, value in kept.items() if value and _competes(name)}
    if not known:
        return None
    most = max(streams[name] for name in known)
    best = max((name for name in known if streams[name] == most), key=lambda name: known[name][0])
    return {"name": best, "kept_gain": list(known[best])}


def _competes(name: str) -> bool:
    method, *variations = BETWEEN.split(name)
    return method in SINGLE and set(variations) <= set(ADAPTERS)
