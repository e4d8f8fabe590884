"""Whether a look comes with its words wherever these stand: lessons with localized words, without.

python -m benchmarks.localized_words: the five toys of a stream, each taught alone, with the default
lesson and with `localized_words`, and drawn from the same noise by prompts that name the toy as its
captions did, later in the sentence, and as the first and the second of two things. Counted are the
pictures that show the toy in its look and, where a second thing is asked for, those that show it
too. The second things and the later sentence use words that no lesson put before the toy's.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.learn_concept import WORKSPACE, task_of
from benchmarks.options import add_drawing_options
from benchmarks.record import RESULTS, Recorder
from benchmarks.regions import share
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.concepts import concept_phrase
from lifelong_core.drawing import knowing
from lifelong_core.evaluation.interval import Interval, interval, paired_difference
from lifelong_core.launch.console import say
from lifelong_core.lesson import defaults_for
from lifelong_core.methods import learn
from lifelong_core.sampling import generate
from lifelong_core.sharing.preview import to_picture
from lifelong_core.state import LifelongState
from lifelong_core.training.precision import autocast_dtype
from lifelong_core.world.backgrounds import PHRASES
from lifelong_core.world.judge import Judge, load_judge
from lifelong_core.world.shipped import weights_path
from lifelong_core.world.streams import Character, toys5
from lifelong_core.world.wearing import Wanted, verdict

LESSONS = {"usual": False, "localized": True}
SENTENCES = {
    "as_taught": "a photo of a {toy} {place}",
    "later": "a view from our garden of a {toy} {place}",
    "first": "a photo of a {toy} and a {other} {place}",
    "second": "a photo of a {other} and a {toy} {place}",
}
PICTURES, STEPS, SHOWN = 2, 25, 2
WORK = WORKSPACE.with_name("localized_words")
"""Where shortened runs are recorded."""


@dataclass(frozen=True)
class Drawn:
    """Pictures [P, 3, H, W] of one toy by one lesson and sentence, and one answer per picture.

    look: the toy is there in its look. other: so is the second thing; empty where none is asked.
    """

    pictures: Tensor
    look: list[bool]
    other: list[bool]


Cells = Mapping[tuple[str, str, str], Drawn]
"""Toy's token, name of LESSONS, name of SENTENCES -> pictures."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    seed = options.stream_seed
    backbone = load_backbone(weights_path("demo"), device=options.device)
    lesson = replace(defaults_for("demo"), precision=options.precision)
    recorder = Recorder(
        "localized_words",
        f"python -m benchmarks.localized_words --stream-seed {seed} "
        f"--precision {options.precision}",
        {
            "stream": "toys5",
            "stream_seed": seed,
            "toys": options.toys,
            "lesson": lesson.to_json(),
            "sentences": SENTENCES,
            "pictures_per_place": options.pictures,
            "sampling_steps": options.steps,
            "precision": options.precision,
        },
        folder=RESULTS
        if (options.toys, options.pictures, options.steps) == (5, PICTURES, STEPS)
        else WORK,
    )
    judge, cells = load_judge(), {}
    for toy in toys5(seed)[: options.toys]:
        task = task_of(toy, backbone.family.default_size)
        for name, localized in LESSONS.items():
            settings = replace(lesson, localized_words=localized)
            state = learn(backbone, task, settings=settings, workspace=WORKSPACE)
            for sentence in SENTENCES:
                drawn = draw(backbone, judge, state, toy, sentence, options)
                cells[toy.token, name, sentence] = drawn
                say(f"{toy.token}, {name}, {sentence}: look {share(drawn.look)}")
    summary = summarised(cells) | {"weights": backbone.fingerprint}
    path = recorder.write(summary, rows(cells), {"pictures": sheet(cells)})
    say(f"Recorded in {path.name}: {json.dumps(summary)}")


def other_of(toy: Character) -> str:
    """The second thing in a toy's pictures: a noun that is neither the toy's nor a filler."""
    return "teddybear" if toy.noun == "backpack" else "backpack"


def draw(
    backbone: Backbone,
    judge: Judge,
    state: LifelongState,
    toy: Character,
    sentence: str,
    options: argparse.Namespace,
) -> Drawn:
    """`options.pictures` before every background."""
    other = other_of(toy)
    prompts = [
        SENTENCES[sentence].format(
            toy=concept_phrase(toy.token, toy.noun), other=other, place=place
        )
        for place in PHRASES.values()
        for _ in range(options.pictures)
    ]
    with knowing(backbone, state) as vectors:
        pictures = generate(
            backbone, prompts, seed=0, steps=options.steps, vectors=vectors,
            autocast=autocast_dtype(options.precision),
        )  # fmt: skip
    seen = judge.observe(pictures)
    wanted = [Wanted(toy.noun, toy.look)]
    return Drawn(
        pictures,
        [verdict(one, wanted).all_present for one in seen],
        [any(thing.noun == other for thing in one) for one in seen]
        if "{other}" in SENTENCES[sentence]
        else [],
    )


def summarised(cells: Cells) -> dict[str, Any]:
    """Lesson -> sentence -> `look`, `other`, each [mean, low, high] over the toys, and
    `localized_minus_usual`, the paired difference of `look`."""
    looks = {
        (lesson, sentence): {
            0: {
                number: share(cells[toy, lesson, sentence].look)
                for number, toy in enumerate(dict.fromkeys(key[0] for key in cells))
            }
        }
        for lesson in LESSONS
        for sentence in SENTENCES
    }
    summary: dict[str, Any] = {}
    for (lesson, sentence), values in looks.items():
        others = [c.other for k, c in cells.items() if k[1:] == (lesson, sentence) and c.other]
        table = {"look": _told(interval(values))}
        if others:
            table["other"] = _told(interval({0: dict(enumerate(map(share, others)))}))
        summary.setdefault(lesson, {})[sentence] = table
    summary["localized_minus_usual"] = {
        sentence: _told(paired_difference(looks["localized", sentence], looks["usual", sentence]))
        for sentence in SENTENCES
    }
    return summary


def rows(cells: Cells) -> list[dict[str, Any]]:
    """One per toy, lesson and sentence."""
    return [
        {"concept": toy, "lesson": lesson, "sentence": sentence, "look": share(one.look)}
        | ({"other": share(one.other)} if one.other else {})
        for (toy, lesson, sentence), one in cells.items()
    ]


def sheet(cells: Cells) -> Image.Image:
    """A line per toy and lesson: the first pictures of every sentence."""
    lines = [
        torch.cat([p for s in SENTENCES for p in cells[toy, lesson, s].pictures[:SHOWN]], dim=2)
        for toy in dict.fromkeys(key[0] for key in cells)
        for lesson in LESSONS
    ]
    return to_picture(torch.cat(lines, dim=1))


def _told(found: Interval | None) -> list[float]:
    assert found is not None, "there is a toy"
    return [round(value, 4) for value in found]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.localized_words")
    parser.add_argument("--stream-seed", type=int, default=2)
    parser.add_argument("--toys", type=int, default=5, help="the first so many")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per background")
    add_drawing_options(parser, STEPS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
