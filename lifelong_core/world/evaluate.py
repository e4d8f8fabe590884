"""Measuring a demo model: does it draw what prompts ask for? With the judge's own ceiling."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backbone import Backbone
from ..evaluation.record import write_record
from ..sampling import generate
from ..sharing.preview import to_picture, write_png
from .asked import Asked, Shown, described, pairs, plain
from .grading import grade, summary
from .judge import Judge
from .pointing import Watch, noun_positions, points_inside
from .pretrain.dataset import Scenes
from .scenes import render
from .shapes import NOUNS

log = logging.getLogger(__name__)

GROUPS = ("plain", "single", "pair")
COLUMNS = 8
LOCALISING = 0.05  # layers this close to the best on the plain group are the ones that localise
SPEED_STEPS = 25


@dataclass(frozen=True)
class EvaluateSettings:
    """`count` prompts per group; `scenes` and `scenes_seed` say what pretraining showed."""

    count: int = 500
    steps: int = 20
    seed: int = 11
    batch_size: int = 8
    scenes: int = 24000
    scenes_seed: int = 7


@dataclass(frozen=True)
class Group:
    """One group of prompts with its pictures [N, 3, 128, 128] and attention maps per layer."""

    name: str
    asked: list[Asked]
    drawn: Tensor
    maps: Mapping[str, Tensor]


def evaluate(
    backbone: Backbone,
    judge: Judge,
    settings: EvaluateSettings,
    folder: Path,
    *,
    command: str,
    on_progress: Callable[[str], None] = log.info,
    on_group: Callable[[Group], None] = lambda group: None,
) -> dict[str, Any]:
    """Draw three groups of prompts, let the judge read them, write report and grids to `folder`.

    plain: one object in one colour (pretraining has shown nearly all of the 384 prompts). single:
    one object with a described look, pair: two plain objects; both in combinations that
    pretraining never showed. Beside each figure stands the ceiling: the judge's own accuracy on
    renders of the asked scenes, and on those renders after the VAE. `on_group` gets each group's
    pictures. Returns the summary.
    """
    shown = Shown(Scenes(folder, settings.scenes, settings.scenes_seed, wild=False))
    asked = {
        "plain": plain(settings.count, settings.seed),
        "single": described(settings.count, settings.seed, shown),
        "pair": pairs(settings.count, settings.seed, shown),
    }
    runs, groups = [], []
    for name in GROUPS:
        group = _draw(backbone, name, asked[name], settings)
        run, rebuilt = _read(backbone, judge, group)
        groups.append(group)
        on_group(group)
        runs.append(run)
        on_progress(f"{name}: {run['drawn']}")
        _write_grids(folder, group, rebuilt)
    pointing = _pointing(judge, groups)
    for run in runs:
        run["attention_pointing"] = pointing[run["group"]]
    result = _summary(runs, pointing) | {"seconds_for_four": seconds_for_four(backbone)}
    write_record(
        folder / "world.json",
        summary=result,
        runs=runs,
        command=command,
        settings=asdict(settings)
        | {"fingerprint": backbone.fingerprint, "layers": pointing["layers"]},
    )
    return result


def _draw(backbone: Backbone, name: str, asked: list[Asked], settings: EvaluateSettings) -> Group:
    words = [
        [noun_positions(one.prompt, thing.noun) for thing in one.scene.things] for one in asked
    ]
    with Watch(backbone, words, settings.steps) as watch:
        drawn = generate(
            backbone,
            [one.prompt for one in asked],
            seed=settings.seed,
            steps=settings.steps,
            batch_size=settings.batch_size,
        )
    return Group(name, asked, drawn, watch.maps)


def _read(backbone: Backbone, judge: Judge, group: Group) -> tuple[dict[str, Any], Tensor]:
    """The group's accuracies, its ceilings and the VAE's error; and the reconstructed renders."""
    rendered = torch.stack([render(one.scene).image for one in group.asked])
    rebuilt = reconstructed(backbone, rendered)
    run = {
        "group": group.name,
        "prompts": len(group.asked),
        "drawn": accuracy(judge, group.drawn, group.asked),
        "ceiling_renders": accuracy(judge, rendered, group.asked),
        "ceiling_reconstructions": accuracy(judge, rebuilt, group.asked),
        "vae_psnr_db": psnr_db(rendered, rebuilt),
    }
    return run, rebuilt


def accuracy(judge: Judge, images: Tensor, asked: Sequence[Asked]) -> dict[str, float]:
    """Shares of pictures that show what was asked, see `grading.Grade`."""
    readings = judge.read(images)
    return summary([grade(seen, one.scene) for seen, one in zip(readings, asked, strict=True)])


def reconstructed(backbone: Backbone, images: Tensor, batch_size: int = 16) -> Tensor:
    """[B, 3, H, W] through the VAE and back."""
    codec = backbone.codec
    return torch.cat([codec.decode(codec.encode(part)).cpu() for part in images.split(batch_size)])


def psnr_db(images: Tensor, rebuilt: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, from the mean squared error over all pictures."""
    return float(-10 * (images - rebuilt).square().mean().log10())


def _pointing(judge: Judge, groups: Sequence[Group]) -> dict[str, Any]:
    """How often a noun's attention peaks inside its own object, per group and layer.

    Only pictures in which the judge finds every asked noun count: without an object nothing can
    be pointed at. The layers that localise are chosen on the plain group and averaged for all.
    """
    inside = {group.name: _inside(judge, group) for group in groups}
    best = max(value for value in inside["plain"].values())
    layers = [name for name, value in inside["plain"].items() if value > best - LOCALISING]
    report: dict[str, Any] = {"layers": layers}
    for group in groups:
        mean = torch.stack([_scaled(group.maps[name]) for name in layers]).mean(0)
        value = _inside(judge, Group(group.name, group.asked, group.drawn, {"mean": mean}))["mean"]
        report[group.name] = {"localising_layers": value, "by_layer": inside[group.name]}
    return report


def _scaled(maps: Tensor) -> Tensor:
    """Each map with a sum of one, so that no layer outweighs another."""
    return maps / maps.sum((2, 3), keepdim=True)


def _inside(judge: Judge, group: Group) -> dict[str, float]:
    where = judge.where(group.drawn)
    rows = torch.arange(len(group.asked))[:, None]
    nouns = torch.tensor(
        [[NOUNS.index(thing.noun) for thing in one.scene.things] for one in group.asked]
    )
    own = where[rows, nouns]
    readings = judge.read(group.drawn)
    counted = torch.tensor(
        [
            all(thing.noun in seen.nouns for thing in one.scene.things)
            for seen, one in zip(readings, group.asked, strict=True)
        ]
    )
    if not counted.any():
        return {name: 0.0 for name in group.maps}
    return {
        name: float(points_inside(maps, own)[counted].float().mean())
        for name, maps in group.maps.items()
    }


def _summary(runs: Sequence[Mapping[str, Any]], pointing: Mapping[str, Any]) -> dict[str, Any]:
    by_group = {run["group"]: run for run in runs}
    single, pair, plain_run = (by_group[name]["drawn"] for name in ("single", "pair", "plain"))
    return {
        "background_accuracy": single["background"],
        "colour_accuracy": single["colours"],
        "noun_accuracy": single["nouns"],
        "part_accuracy": single["parts"],
        "alone": single["alone"],
        "plain_background_accuracy": plain_run["background"],
        "plain_colour_accuracy": plain_run["colours"],
        "plain_noun_accuracy": plain_run["nouns"],
        "plain_alone": plain_run["alone"],
        "two_object_success": pair["success"],
        "two_object_nouns": pair["nouns"],
        "attention_pointing": pointing["single"]["localising_layers"],
        "attention_pointing_two": pointing["pair"]["localising_layers"],
        "vae_psnr_db": sum(run["vae_psnr_db"] for run in runs) / len(runs),
        "judge_ceiling": {
            name: {
                "renders": run["ceiling_renders"],
                "reconstructions": run["ceiling_reconstructions"],
            }
            for name, run in by_group.items()
        },
    }


def seconds_for_four(backbone: Backbone) -> float:
    """Wall seconds for four pictures with 25 steps, after one picture to warm up."""
    generate(backbone, ["a photo of a red dog"], seed=0, steps=2)
    began = time.perf_counter()
    generate(backbone, ["a photo of a red dog on the beach"] * 4, seed=0, steps=SPEED_STEPS)
    return time.perf_counter() - began


def _write_grids(folder: Path, group: Group, rebuilt: Tensor) -> None:
    count = min(len(group.drawn), COLUMNS * COLUMNS)
    write_png(to_picture(grid(group.drawn[:count])), folder / f"{group.name}.png")
    write_png(to_picture(grid(rebuilt[:count])), folder / f"{group.name}-reconstructions.png")
    lines = [one.prompt for one in group.asked[:count]]
    log.info("%s grid, row by row: %s", group.name, "; ".join(lines))


def grid(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """[B, 3, H, W] -> one picture [3, rows * H, columns * W]; empty places are white."""
    missing = -len(images) % columns
    blank = torch.ones(missing, *images.shape[1:])
    rows = torch.cat([images, blank]).split(columns)
    return torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
