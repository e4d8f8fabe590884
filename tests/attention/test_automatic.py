"""Regions from attention maps, and pictures drawn with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong_core import automatic_sampling
from lifelong_core.attention.automatic import BACKGROUND, assign, grown
from lifelong_core.attention.regions import Region, box_mask
from lifelong_core.automatic_sampling import generate_automatic, placed_concepts
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.consolidation.routing import route
from lifelong_core.drawing import knowing
from lifelong_core.errors import InputError
from lifelong_core.regional_sampling import generate_regions
from lifelong_core.sampling import generate
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState
from tests.attention.test_regional_sampling import ALIKE, counted, routed
from tests.consolidation.conftest import example_state

FIRST = "a photo of embedding:thing_1 dog"
BOTH = "embedding:thing_1 dog and embedding:thing_2 cat on the beach"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


@pytest.fixture(scope="module")
def state(backbone: Backbone) -> LifelongState:
    return routed(example_state(backbone, 2))


def _draw(backbone: Backbone, state: LifelongState, prompt: str = BOTH, **options: Any) -> Tensor:
    settings = {"seed": 3, "steps": 4, "size": (64, 64), "as_latents": True}
    return generate_automatic(backbone, state, prompt, **{**settings, **options})


def _blob(top: int, left: int, side: int = 5) -> Tensor:
    blob = torch.zeros(16, 16)
    blob[top : top + side, left : left + side] = 1
    return blob


def test_two_objects_have_a_region_each_and_the_rest_has_none() -> None:
    noise = 0.2 * torch.rand(2, 16, 16, generator=generator(0, "noise"))
    first, second = _blob(3, 2), _blob(8, 9)
    masks = assign(torch.stack([first + 0.4 * second, 0.01 * second]) + noise * first.max() / 100)
    inner_first, inner_second = _blob(4, 3, 3).bool(), _blob(9, 10, 3).bool()
    assert masks[0][inner_first].all() and masks[1][inner_second].all()
    assert not masks[0][inner_second].any() and not masks[1][inner_first].any()
    far = torch.stack([first, second]).sum(0) == 0
    assert masks[:, far].mean() < 0.2


def test_every_cell_goes_to_the_highest_map_or_to_none() -> None:
    maps = torch.rand(3, 12, 12, generator=generator(0, "maps")) ** 2
    masks = assign(maps)
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), value=float("nan"))
    smooth = torch.empty_like(maps)
    for y in range(12):
        for x in range(12):
            smooth[:, y, x] = padded[:, y : y + 3, x : x + 3].flatten(1).nanmean(1)
    scaled = smooth / smooth.amax((1, 2), keepdim=True)
    highest, owner = scaled.max(0)
    wrong = 0
    for y in range(12):
        for x in range(12):
            owners = masks[:, y, x].nonzero()[:, 0].tolist()
            wanted = [int(owner[y, x])] if highest[y, x] > BACKGROUND else []
            wrong += owners != wanted
    assert wrong <= 3 * 3, "only the anchors of three concepts may be elsewhere"


@pytest.mark.parametrize("second", [torch.ones(16, 16), torch.zeros(16, 16)])
def test_concepts_whose_maps_say_nothing_still_have_cells_of_their_own(second: Tensor) -> None:
    masks = assign(torch.stack([torch.ones(16, 16), second, torch.ones(16, 16)]))
    assert (masks.sum((1, 2)) >= 5).all() and masks.sum(0).max() == 1


def test_free_cells_within_reach_go_to_the_nearest_region() -> None:
    masks = (torch.rand(3, 9, 14, generator=generator(0, "grown")) > 0.97).float()
    masks *= masks.cumsum(0) <= 1
    assert (masks.sum((1, 2)) > 0).all()
    cells = [mask.nonzero() for mask in masks]
    for reach in (0, 1.5, 4, 20):
        wider = grown(masks, reach)
        for y in range(9):
            for x in range(14):
                away = [float(((own - torch.tensor([y, x])) ** 2).sum(1).min()) for own in cells]
                found = wider[:, y, x].nonzero()[:, 0].tolist()
                assert [away[k] for k in found] == [min(away)] * (min(away) <= reach**2), (y, x)
    assert torch.equal(grown(masks, 0), masks)


def test_each_concept_is_drawn_inside_its_mask_after_the_delay(
    backbone: Backbone, state: LifelongState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in given regions, each with a prompt that names its own concept and the other's noun."""
    left, right = box_mask(0, 0, 0.5, 0.8, (8, 8)), box_mask(0.5, 0, 1, 1, (8, 8))
    early = automatic_sampling.early_masks

    def given(*masks: Tensor) -> None:
        def found(*told: Any) -> list[list[Tensor]]:
            early(*told)
            return [list(masks)]

        monkeypatch.setattr(automatic_sampling, "early_masks", found)

    given(left, right)
    drawn = _draw(backbone, state, delay=0.5)
    regions = [
        Region("embedding:thing_1 dog and a cat on the beach", left),
        Region("a dog and embedding:thing_2 cat on the beach", right),
    ]
    plain = "a dog and a cat on the beach"
    wanted = generate_regions(
        backbone, state, plain, regions,
        seed=3, steps=4, size=(64, 64), as_latents=True, alpha=1.0, delay=0.5,
    )  # fmt: skip
    assert torch.allclose(drawn, wanted, atol=ALIKE)
    given(right, left)
    assert (drawn - _draw(backbone, state, delay=0.5)).abs().max() > 100 * ALIKE


def test_it_costs_half_a_pass_more_than_plain_sampling(
    backbone: Backbone, state: LifelongState
) -> None:
    steps: list[tuple[int, int]] = []
    with counted(backbone) as rows:
        first = _draw(backbone, state, steps=8, on_progress=lambda *done: steps.append(done))
    assert rows == [2, 2, 1, *[2] * 6]
    assert steps == [(n + 1, 8) for n in range(8)]
    assert first.isfinite().all()
    assert torch.equal(first, _draw(backbone, state, steps=8))


def test_pictures_have_masks_of_their_own(
    backbone: Backbone, state: LifelongState, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[list[Tensor]]] = []
    early = automatic_sampling.early_masks

    def keep(*given: Any) -> list[list[Tensor]]:
        found.append(early(*given))
        return found[-1]

    monkeypatch.setattr(automatic_sampling, "early_masks", keep)
    drawn = _draw(backbone, state, count=3, batch_size=2)
    assert drawn.shape == (3, 4, 8, 8) and [len(batch) for batch in found] == [2, 1]
    masks = [torch.stack(own) for batch in found for own in batch]
    assert all(own.shape == (2, 8, 8) and own.sum(0).max() == 1 for own in masks)
    assert not torch.equal(masks[0], masks[1])


def test_with_less_than_two_concepts_it_is_plain_sampling(
    backbone: Backbone, state: LifelongState
) -> None:
    for prompt in (FIRST, "a dog"):
        with knowing(backbone, route(state, prompt)) as vectors:
            plain = generate(
                backbone, [prompt], seed=3, steps=4, size=(64, 64), as_latents=True, vectors=vectors
            )
        assert torch.equal(_draw(backbone, state, prompt), plain)


def test_what_cannot_be_drawn_is_refused(backbone: Backbone, state: LifelongState) -> None:
    with pytest.raises(InputError, match="does not name the concept 'thing_2'"):
        placed_concepts(state, FIRST, ["thing_2"])
    assert [one.token for one in placed_concepts(state, BOTH, ["thing_2"])] == ["thing_2"]
    with pytest.raises(InputError, match="noun 'cat'"):
        _draw(backbone, state, "embedding:thing_1 dog and embedding:thing_2")
    with pytest.raises(InputError, match="delay"):
        _draw(backbone, state, delay=1.0)
    with pytest.raises(InputError, match="more than 0"):
        _draw(backbone, state, delay=0.0)
    with pytest.raises(InputError, match="softness"):
        _draw(backbone, state, softness=2.0)
