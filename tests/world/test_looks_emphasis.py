"""What the demo model's training looks at most: cells that show a look, and scenes with looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lifelong_core.world.looks import Look
from lifelong_core.world.pretrain.dataset import Scenes
from lifelong_core.world.pretrain.looks import ODDS, WEIGHT, cell_weights, look_shares, odds
from lifelong_core.world.scenes import render


class FewScenes(Scenes):
    """A dozen scenes in all, and every look of theirs by hand."""

    looks = (
        Look("red"),
        Look("red", hat="blue"),
        Look("red", "two-tone", "green"),
        Look("red", scarf="yellow", patch="white"),
    )

    def scene(self, index: int):
        scene = super().scene(index)
        thing = replace(scene.things[0], look=self.looks[index % len(self.looks)])
        return replace(scene, things=(thing,))


def test_shares_are_where_a_look_shows_and_only_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lifelong_core.world.pretrain.looks.HELD_OUT", 4)
    scenes = FewScenes(tmp_path, 8, seed=3, wild=False)
    shares = look_shares(scenes)
    assert shares.shape == (12, 16, 16)
    assert shares.min() >= 0.0 and shares.max() <= 1.0
    for index in range(12):
        look = scenes.looks[index % 4]
        assert bool(shares[index].any()) is not look.is_plain
        # Nothing outside the object and what it wears is ever part of a look.
        mask = render(scenes.scene(index)).masks[0].float()
        inside = torch.nn.functional.max_pool2d(mask[None, None], 8)[0, 0]
        assert not (shares[index] * (1 - inside)).any()
    assert shares[1::4].amax() > 0.9  # a hat fills a cell
    assert 0.45 < shares[2::4].amax() <= 0.5  # a patterned body counts half
    assert shares[1::4].mean() < shares[2::4].mean()


def test_shares_are_made_once(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("lifelong_core.world.pretrain.looks.HELD_OUT", 4)
    first = look_shares(FewScenes(tmp_path, 8, seed=3, wild=False))
    monkeypatch.setattr("lifelong_core.world.pretrain.looks._chunk", None)
    assert torch.equal(look_shares(FewScenes(tmp_path, 8, seed=3, wild=False)), first)


def test_weights_favour_looks_and_keep_the_size_of_the_loss() -> None:
    shares = torch.zeros(2, 16, 16)
    shares[1, 4, 5] = 1.0
    weights = cell_weights(shares)
    assert torch.equal(weights[0], torch.ones(16, 16))
    torch.testing.assert_close(weights.mean((1, 2)), torch.ones(2))
    torch.testing.assert_close(weights[1, 4, 5] / weights[1, 0, 0], torch.tensor(1 + WEIGHT))
    assert odds(shares).tolist() == [1.0, ODDS]
