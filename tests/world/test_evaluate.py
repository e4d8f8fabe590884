"""`world evaluate`: what it asks for, where attention points, and the report it writes."""

from __future__ import annotations

import json
from dataclasses import astuple, replace
from pathlib import Path

import pytest
import torch

from lifelong_core.backbone import random_backbone
from lifelong_core.prompts import tokenizer
from lifelong_core.sampling import generate
from lifelong_core.world.asked import Shown, described, pairs, plain, prompt_of
from lifelong_core.world.evaluate import EvaluateSettings, evaluate, grid, psnr_db
from lifelong_core.world.judge import Judge
from lifelong_core.world.judge_net import new_judge_net
from lifelong_core.world.looks import Look
from lifelong_core.world.pointing import Watch, noun_positions, points_inside
from lifelong_core.world.pretrain.dataset import Scenes
from lifelong_core.world.scenes import Scene, Thing


@pytest.fixture(scope="module")
def shown() -> Shown:
    return Shown(Scenes(Path("unused"), 400, 7, wild=False))


def test_prompts_ask_for_what_was_never_shown(shown: Shown) -> None:
    scenes = Scenes(Path("unused"), 400, 7, wild=False)
    seen = [scenes.scene(index) for index in range(400)]
    natural = next(s for s in seen if s.style.is_natural and not s.things[0].look.is_plain)
    assert shown.has(natural)
    thing = natural.things[0]
    bare = Thing(thing.noun, Look(*astuple(thing.look)[:3]), thing.place)
    less = replace(natural, things=(bare, *natural.things[1:]))
    assert shown.has(less)  # a caption may leave parts untold
    for one in (*described(30, 1, shown), *pairs(30, 1, shown)):
        assert not shown.has(one.scene)


def test_prompts_are_seeded_and_tell_everything(shown: Shown) -> None:
    asked = pairs(20, 1, shown)
    assert asked == pairs(20, 1, shown) and asked[:5] == pairs(5, 1, shown)
    assert asked != pairs(20, 2, shown)
    for one in asked:
        first, second = one.scene.things
        assert f"{first.look.colour} {first.noun} and a" in one.prompt
        assert f"{second.look.colour} {second.noun} " in one.prompt
    assert all(
        len(one.scene.things) == 1 and one.scene.things[0].look.is_plain for one in plain(9, 1)
    )
    assert not any(one.scene.things[0].look.is_reserved for one in described(20, 1, shown))
    scene = Scene("night", (Thing("car", Look("red", hat="blue"), asked[0].scene.things[0].place),))
    assert prompt_of(scene) == "a photo of a fancy red car with a blue hat at night"


def test_the_nouns_tokens_are_found() -> None:
    prompt = "a photo of a red teddybear and a blue car on grass"
    ids = [None, *tokenizer().encode(prompt)]
    for noun in ("teddybear", "car"):
        positions = noun_positions(prompt, noun)
        assert [ids[position] for position in positions] == tokenizer().encode(noun)
    with pytest.raises(ValueError, match="zebra"):
        noun_positions(prompt, "zebra")


def test_watching_changes_nothing_and_gathers_every_picture() -> None:
    backbone = random_backbone("demo", seed=0)
    prompts = ["a photo of a red dog", "a photo of a blue cat"]
    words = [[noun_positions(p, p.split()[-1])] for p in prompts]
    plainly = generate(backbone, prompts, seed=0, steps=2, batch_size=2)
    with Watch(backbone, words, 2) as watch:
        watched = generate(backbone, prompts, seed=0, steps=2, batch_size=2)
    assert torch.equal(plainly, watched)
    with Watch(backbone, words, 2) as single:
        generate(backbone, prompts, seed=0, steps=2, batch_size=1)
    assert len(watch.maps) == sum(n.endswith("attn2") for n, _ in backbone.unet.named_modules())
    for name, maps in watch.maps.items():
        assert maps.shape == (2, 1, 16, 16) and (maps.sum((1, 2, 3)) > 0).all()
        assert torch.allclose(maps, single.maps[name], atol=1e-4)
    before = {name: maps.clone() for name, maps in watch.maps.items()}
    generate(backbone, prompts[:1], seed=0, steps=1)
    assert all(torch.equal(before[name], maps) for name, maps in watch.maps.items())


def test_a_peak_counts_inside_its_own_object_only() -> None:
    maps = torch.zeros(1, 2, 16, 16)
    maps[0, 0, 4, 4] = maps[0, 1, 4, 5] = 1
    where = torch.zeros(1, 2, 16, 16)
    where[0, 0, 3:6, 3:6] = 0.9  # the second map peaks in the first object
    where[0, 1, 10:12, 10:12] = 0.9
    assert points_inside(maps, where).tolist() == [[True, False]]


def test_psnr_and_grid() -> None:
    images = torch.full((3, 3, 8, 8), 0.5)
    assert abs(psnr_db(images, images + 0.1) - 20) < 1e-3
    whole = grid(images, columns=2)
    assert whole.shape == (3, 16, 16)
    assert (whole[:, 8:, 8:] == 1).all() and (whole[:, :8] == 0.5).all()


def test_the_report_is_complete_and_pictures_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lifelong_core.world.evaluate.SPEED_STEPS", 1)
    settings = EvaluateSettings(count=2, steps=1, batch_size=2, scenes=50)
    result = evaluate(
        random_backbone("demo", seed=0),
        Judge(new_judge_net(0)),
        settings,
        tmp_path,
        command="world evaluate",
    )
    report = json.loads((tmp_path / "world.json").read_text(encoding="utf-8"))
    assert list(report) == [
        "summary",
        "runs",
        "command",
        "settings",
        "versions",
        "hardware",
        "date",
    ]
    assert report["summary"] == result
    wanted = "background_accuracy colour_accuracy noun_accuracy part_accuracy alone vae_psnr_db"
    wanted += " attention_pointing attention_pointing_two two_object_success judge_ceiling"
    wanted += " seconds_for_four"
    assert set(wanted.split()) <= set(result)
    for run in report["runs"]:
        assert run["prompts"] == 2
        assert {"drawn", "ceiling_renders", "ceiling_reconstructions", "attention_pointing"} <= set(
            run
        )
        for kind in ("", "-reconstructions"):
            assert (tmp_path / f"{run['group']}{kind}.png").stat().st_size > 200
