"""The judge: shapes, targets, grading, and that the shipped one reads what was rendered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lifelong_core.seeding import generator
from lifelong_core.world.drawing import Placement
from lifelong_core.world.grading import grade, summary
from lifelong_core.world.judge import Judge, Reading, ThingReading, load_judge
from lifelong_core.world.judge_net import ATTRIBUTES, FEATURES, GLOBALS, new_judge_net, regions
from lifelong_core.world.looks import Look
from lifelong_core.world.pretrain.dataset import Scenes
from lifelong_core.world.pretrain.judge import judge_loss
from lifelong_core.world.pretrain.judge_data import JudgeData, Targets, odd_scene
from lifelong_core.world.scenes import Scene, Thing, random_scene, render
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.shipped import WEIGHTS
from lifelong_core.world.streams import character
from lifelong_core.world.styles import Style

LEFT, RIGHT = Placement(0.26, 0.9, 0.45), Placement(0.74, 0.9, 0.45)
RED_DOG = Thing("dog", Look("red"), LEFT)
STRIPED_CAT = Thing("cat", Look("blue", "striped", "white", accent="green", hat="red"), RIGHT)
SCENE = Scene("beach", (RED_DOG, STRIPED_CAT))


def reading(*things: Thing, background: str = "beach", style: Style | None = None) -> Reading:
    seen = tuple(ThingReading(t.noun, t.look, t.place.x, 0.7, 0.9) for t in things)
    return Reading(background, style or Style(), seen)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> JudgeData:
    """A few rendered scenes with their targets."""
    folder = tmp_path_factory.mktemp("judge")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lifelong_core.world.pretrain.dataset.HELD_OUT", 4)
        patch.setattr("lifelong_core.world.pretrain.judge_data.HELD_OUT", 4)
        patch.setattr("lifelong_core.world.pretrain.judge_data.ODD", 6)
        return JudgeData(folder, Scenes(folder, 12, 7, wild=False), None, 0)


def test_the_network_is_deterministic_and_has_the_promised_shapes() -> None:
    net, again = new_judge_net(1), new_judge_net(1)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in net.state_dict().items())
    output = net.eval()(torch.rand(2, 3, 128, 128))
    assert output.centre.shape == (2, 16, 16) and output.nouns.shape == (2, 9, 16, 16)
    assert all(output.attributes[name].shape[1] == len(v) for name, v in ATTRIBUTES.items())
    assert all(output.whole[name].shape == (2, len(v)) for name, v in GLOBALS.items())
    assert sum(p.numel() for p in net.parameters()) < 1_000_000


def test_any_size_is_read_and_batches_do_not_matter() -> None:
    judge = Judge(new_judge_net(0))
    images = torch.stack([render(random_scene(0, i)).image for i in range(3)])
    assert judge.read(images) == judge.read(images, batch_size=1)
    assert torch.allclose(judge.features(images), judge.features(images, batch_size=2), atol=1e-5)
    assert judge.features(images).shape == (3, FEATURES)
    for size in ((64, 64), (96, 80), (256, 256)):
        assert judge.where(torch.rand(1, 3, *size)).shape == (1, 8, 16, 16)


def test_targets_mark_the_middles_and_what_covers_the_cells(data: JudgeData) -> None:
    _, targets = data.batch(16, generator(0, "batch"))
    middles = targets.bumps(0.11)
    assert middles.shape == (16, 3, 16, 16)
    present = targets.present
    assert (middles.amax((2, 3)) > 0.99).equal(present)
    for row, column in present.nonzero().tolist():
        thing = targets.things[row, column]
        peak = int(middles[row, column].argmax())
        assert abs((peak % 16 + 0.5) / 16 - thing[-3]) < 0.05
        assert abs((peak // 16 + 0.5) / 16 - thing[-2]) < 0.05
        assert (targets.cover[row] == thing[0] + 1).any()


def test_mirroring_moves_pictures_and_targets_alike(data: JudgeData) -> None:
    _, targets = data.batch(8, generator(0, "batch"))
    flipped = targets.flipped(torch.ones(8, dtype=torch.bool))
    assert torch.equal(flipped.cover, targets.cover.flip(-1))
    assert torch.allclose(flipped.bumps(0.11), targets.bumps(0.11).flip(-1), atol=1e-5)
    unchanged = targets.flipped(torch.zeros(8, dtype=torch.bool))
    assert torch.equal(unchanged.things, targets.things)


def test_colours_are_not_asked_for_where_there_are_none(data: JudgeData) -> None:
    colours = [1 + list(ATTRIBUTES).index(name) for name in ATTRIBUTES if name != "pattern"]
    from lifelong_core.world.pretrain.judge_data import _thing_row

    row = _thing_row(STRIPED_CAT, colours=False)
    assert all(row[column] == -1 for column in colours)
    assert row[1 + list(ATTRIBUTES).index("pattern")] >= 0


def test_the_loss_falls_on_one_batch(data: JudgeData) -> None:
    images, targets = data.batch(12, generator(3, "batch"))
    net = new_judge_net(0).train()
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        loss = judge_loss(net(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_a_perfect_output_has_nearly_no_loss_and_swapped_colours_cost(data: JudgeData) -> None:
    images, targets = data.batch(4, generator(5, "batch"))
    output = new_judge_net(0).eval()(images)
    perfect = _perfect(output, targets)
    assert judge_loss(perfect, targets) < 0.05
    things = targets.things.clone()
    things[..., 1] = (things[..., 1] + 1) % 12
    assert judge_loss(perfect, Targets(targets.cover, things, targets.whole)) > 3


def _perfect(output, targets: Targets):  # type: ignore[no-untyped-def]
    def sure(labels: Tensor, count: int) -> Tensor:
        return 20.0 * torch.nn.functional.one_hot(labels.clamp(min=0), count).movedim(-1, 1).float()

    x, y, _ = targets.things[..., -3:].unbind(-1)
    owner = regions(targets.cover > 0, x, y, targets.present).float().argmax(1)
    attributes = {}
    for column, (name, values) in enumerate(ATTRIBUTES.items(), start=1):
        labels = targets.things[..., column].long()
        attributes[name] = sure(labels.gather(1, owner.flatten(1)).view_as(owner), len(values))
    return replace(
        output,
        centre=torch.where(targets.bumps(0.11).amax(1) > 0.99, 20.0, -20.0),
        nouns=sure(targets.cover, 9),
        attributes=attributes,
        focus=20.0 * (targets.cover > 0).float()[:, None].expand(-1, 1 + len(ATTRIBUTES), -1, -1),
        whole={
            name: sure(targets.whole[:, k], len(values))
            for k, (name, values) in enumerate(GLOBALS.items())
        },
    )


def test_cells_belong_to_the_nearest_object() -> None:
    covered = torch.zeros(1, 16, 16, dtype=torch.bool)
    covered[:, 4:8, 2:14] = True
    middles = torch.tensor([[0.3, 0.7, 0.0]]), torch.tensor([[0.4, 0.4, 0.0]])
    cells = regions(covered, *middles, torch.tensor([[True, True, False]]))[0]
    assert not (cells[0] & cells[1]).any() and not cells[2].any()
    assert cells[0, 3:9, 1:8].all() and cells[1, 3:9, 8:15].all()
    assert cells.sum() == 6 * 14
    nothing = regions(covered & False, *middles, torch.tensor([[True, True, False]]))[0]
    assert nothing[0, 5:8, 3:6].any() and nothing[1].any()  # the middle is always read


def test_odd_scenes_hold_a_noun_twice_or_nothing() -> None:
    scenes = [odd_scene(0, index) for index in range(200)]
    assert {len(scene.things) for scene in scenes} == {0, 2, 3}
    for scene in scenes:
        nouns = [thing.noun for thing in scene.things]
        assert not nouns or len(set(nouns)) < len(nouns)
        assert not any(thing.look.is_reserved for thing in scene.things)


def test_a_right_reading_has_full_marks() -> None:
    marks = grade(reading(RED_DOG, STRIPED_CAT), SCENE)
    assert marks.success and marks.background and marks.style and marks.alone and marks.patterns
    assert (marks.parts, marks.asked_parts) == (2, 2)


def test_each_mistake_costs_its_own_marks() -> None:
    swapped = [replace(RED_DOG, look=STRIPED_CAT.look), replace(STRIPED_CAT, look=RED_DOG.look)]
    marks = grade(reading(*swapped), SCENE)
    assert marks.exact and not marks.colours and not marks.success and marks.parts == 0
    marks = grade(reading(RED_DOG), SCENE)
    assert not marks.nouns and not marks.exact and not marks.colours and marks.alone
    marks = grade(reading(RED_DOG, STRIPED_CAT, replace(RED_DOG, place=RIGHT)), SCENE)
    assert marks.nouns and marks.colours and not marks.alone and not marks.exact
    marks = grade(reading(RED_DOG, STRIPED_CAT, background="snow"), SCENE)
    assert not marks.background and marks.success
    wrong_ear = replace(STRIPED_CAT, look=replace(STRIPED_CAT.look, accent="pink"))
    assert grade(reading(RED_DOG, wrong_ear), SCENE).parts == 1


def test_both_colours_of_a_pattern_count_in_either_order() -> None:
    turned = replace(STRIPED_CAT, look=replace(STRIPED_CAT.look, colour="white", second="blue"))
    assert grade(reading(RED_DOG, turned), SCENE).colours
    plain = replace(STRIPED_CAT, look=Look("blue"))
    assert not grade(reading(RED_DOG, plain), SCENE).colours


def test_the_summary_counts_pictures_and_parts() -> None:
    grades = [grade(reading(RED_DOG, STRIPED_CAT), SCENE), grade(reading(RED_DOG), SCENE)]
    shares = summary(grades)
    assert shares["exact"] == 0.5 and shares["background"] == 1.0 and shares["parts"] == 0.5
    assert "parts" not in summary([grade(reading(RED_DOG), Scene("beach", (RED_DOG,)))])


@pytest.fixture(scope="module")
def shipped() -> Judge:
    return load_judge()


def test_the_shipped_judge_reads_unseen_renders(shipped: Judge) -> None:
    def shares(count: int | None, fancy: float) -> dict[str, float]:
        scenes = [
            random_scene(991, index, count=count, fancy=fancy, styled=0.0) for index in range(80)
        ]
        images = torch.stack([render(scene).image for scene in scenes])
        readings = shipped.read(images)
        return summary([grade(r, s) for r, s in zip(readings, scenes, strict=True)])

    single, any_scene = shares(1, 1.0), shares(None, 0.5)
    assert single["background"] == any_scene["background"] == 1.0
    assert single["exact"] == 1.0 and single["colours"] >= 0.95 and single["parts"] >= 0.95
    # Parts of the smallest of three objects are less than a cell wide.
    assert any_scene["exact"] > 0.95 and any_scene["colours"] > 0.9 and any_scene["parts"] > 0.8


def test_the_shipped_judge_counts_two_of_a_kind_and_nothing(shipped: Judge) -> None:
    scenes = [odd_scene(991, index) for index in range(30)]
    images = torch.stack([render(scene).image for scene in scenes])
    right = [
        seen.nouns == sorted(t.noun for t in scene.things)
        for seen, scene in zip(shipped.read(images), scenes, strict=True)
    ]
    assert np.mean(right) > 0.9


def test_the_shipped_judge_knows_where_things_are(shipped: Judge) -> None:
    rendering = render(SCENE)
    where = shipped.where(rendering.image[None])[0]
    for mask, thing in zip(rendering.masks, SCENE.things, strict=True):
        cells = torch.nn.functional.avg_pool2d(mask[None].float(), 8)[0]
        own = where[NOUNS.index(thing.noun)]
        assert own[cells == 1].mean() > 0.8 and own[cells == 0].mean() < 0.05
    first, second = shipped.read(rendering.image[None])[0].things
    assert abs(first.x - LEFT.x) < 0.06 and abs(second.x - RIGHT.x) < 0.06


def test_its_features_tell_a_character_from_others_of_its_noun(shipped: Judge) -> None:
    characters = [character(5, index, "dog") for index in range(8)]
    photos = [shipped.features(one.photos(3)) for one in characters]
    unseen = [shipped.features(one.photos(3, unseen=True)) for one in characters]
    mean = torch.cat(photos).mean(0)
    first, second = (
        torch.nn.functional.normalize(torch.stack(part) - mean, dim=-1) for part in (photos, unseen)
    )
    alike = torch.einsum("apd,bqd->abpq", first, second).mean((2, 3))
    assert (alike.argmax(1) == torch.arange(8)).float().mean() >= 0.85


def test_missing_weights_are_named_with_their_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lifelong_core.errors import ModelError
    from lifelong_core.world import shipped as module

    monkeypatch.setattr(module, "WEIGHTS", tmp_path)
    with pytest.raises(ModelError, match=r"judge\.safetensors.*world pretrain"):
        module.weights_path("judge")
    module.write_weights("judge", new_judge_net(3).state_dict(), tmp_path)
    tensors = module.read_weights("judge")
    assert all(value.dtype == torch.float32 for value in tensors.values())
    net = new_judge_net()
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    assert not unexpected and all(key.endswith("num_batches_tracked") for key in missing)
    assert (tmp_path / "judge.safetensors").stat().st_size < 2_500_000


def test_everything_shipped_is_small() -> None:
    files = list(WEIGHTS.glob("*.safetensors"))
    assert {file.stem for file in files} == {"demo", "judge", "clip"}
    assert sum(file.stat().st_size for file in files) <= 50_000_000
