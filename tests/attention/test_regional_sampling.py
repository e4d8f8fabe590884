"""Whole pictures with regions, on random weights of the demo's size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec
from lifelong_core.attention.regions import Region, box_mask, delayed_steps
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.consolidation.routing import route
from lifelong_core.drawing import knowing
from lifelong_core.errors import InputError, StateError
from lifelong_core.picture_start import PictureStart
from lifelong_core.regional_sampler import RegionalSampler, Underway
from lifelong_core.regional_sampling import generate_regions
from lifelong_core.regional_slots import encode_slots, plain_slots, region_slots
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from tests.consolidation.conftest import example_state

FIRST, SECOND = "a photo of embedding:thing_1 dog", "a photo of embedding:thing_2 cat"
BOTH = "embedding:thing_1 dog and embedding:thing_2 cat on the beach"
LEFT, RIGHT = box_mask(0, 0, 0.5, 1, (64, 64)), box_mask(0.5, 0, 1, 1, (64, 64))
HALVES = [Region(FIRST, LEFT), Region(SECOND, RIGHT)]
ALIKE = 1e-4
"""Rows share their passes with others than in plain sampling, so sums are rounded elsewhere."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


@pytest.fixture(scope="module")
def state(backbone: Backbone) -> LifelongState:
    """Hard routing's: an adapter of its own for each of two concepts."""
    return routed(example_state(backbone, 2))


def routed(state: LifelongState) -> LifelongState:
    settings = {**state.records[-1].settings, "method": "hard_routing"}
    return replace(state, records=[replace(one, settings=settings) for one in state.records])


@contextmanager
def counted(backbone: Backbone) -> Iterator[list[int]]:
    """The rows of every forward pass."""
    rows: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    yield rows
    handle.remove()


def _draw(backbone: Backbone, state: Any, regions: list[Region], **options: Any) -> Tensor:
    settings = {"seed": 3, "steps": 2, "size": (64, 64), "as_latents": True, "delay": 0.0}
    prompt = options.pop("prompt", BOTH)
    return generate_regions(backbone, state, prompt, regions, **{**settings, **options})


def _plain(
    backbone: Backbone, state: LifelongState | None, prompt: str, count: int = 1, **options: Any
) -> Tensor:
    settings = {"seed": 3, "steps": 2, "size": (64, 64), "as_latents": True}
    with knowing(backbone, state) as vectors:
        return generate(backbone, [prompt] * count, vectors=vectors, **{**settings, **options})


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_one_region_everywhere_is_its_prompt_with_its_adapter(
    backbone: Backbone, state: LifelongState, guidance: float
) -> None:
    everywhere = [Region(SECOND, torch.ones(10, 10))]
    drawn = _draw(backbone, state, everywhere, alpha=0.0, count=2, guidance=guidance)
    own = _plain(backbone, route(state, SECOND), SECOND, 2, guidance=guidance)
    other = _plain(backbone, route(state, FIRST), SECOND, 2, guidance=guidance)
    assert torch.allclose(drawn, own, atol=ALIKE)
    assert (drawn - other).abs().max() > 100 * ALIKE


def test_the_text_encoders_are_the_regions_own_too(backbone: Backbone) -> None:
    state = routed(example_state(backbone, 2, AdapterSpec(rank=2, text_encoder=True)))
    drawn = _draw(backbone, state, [Region(SECOND, torch.ones(10, 10))], alpha=0.0)
    own = _plain(backbone, route(state, SECOND), SECOND)
    assert torch.allclose(drawn, own, atol=ALIKE)


def test_regions_that_ask_for_the_same_are_plain_sampling(backbone: Backbone) -> None:
    same = [Region("a dog", LEFT), Region("a dog", box_mask(0.3, 0.2, 0.8, 1, (64, 64)))]
    drawn = _draw(backbone, None, same, prompt="a dog", softness=0.1)
    assert torch.allclose(drawn, _plain(backbone, None, "a dog"), atol=ALIKE)


def test_without_regions_it_is_plain_sampling_bit_for_bit(
    backbone: Backbone, state: LifelongState
) -> None:
    assert torch.equal(_draw(backbone, None, [], prompt="a dog"), _plain(backbone, None, "a dog"))
    drawn = _draw(backbone, state, [], prompt=FIRST, count=2)
    assert torch.equal(drawn, _plain(backbone, route(state, FIRST), FIRST, 2))


def test_a_concept_is_put_into_the_masked_part_of_a_picture(
    backbone: Backbone, state: LifelongState
) -> None:
    photos = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    start = PictureStart(photos, 0.6, LEFT)
    drawn = _draw(backbone, state, HALVES[:1], count=2, start=start, size=None)
    kept = start.encode(backbone, 2).latents
    assert torch.equal(drawn[..., 4:], kept[..., 4:])
    assert (drawn[..., :4] - kept[..., :4]).abs().amax((1, 2, 3)).min() > 100 * ALIKE
    for other in (
        _draw(backbone, state, [Region("a dog", LEFT)], count=2, start=start),
        _draw(backbone, state, HALVES[:1], count=2, start=replace(start, strength=0.9)),
    ):
        assert (drawn - other).abs().max() > 100 * ALIKE
    # Each picture starts from its own, also where they are drawn one at a time.
    one_by_one = _draw(backbone, state, HALVES[:1], count=2, start=start, row_limit=3)
    assert torch.allclose(drawn, one_by_one, atol=ALIKE)


@pytest.mark.parametrize("regions", [[], [Region(FIRST, torch.ones(8, 8))]])
def test_starting_from_a_picture_is_that_of_plain_sampling(
    backbone: Backbone, state: LifelongState, regions: list[Region]
) -> None:
    photo = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    start = PictureStart(photo, 0.6, LEFT)
    drawn = _draw(backbone, state, regions, prompt=FIRST, alpha=0.0, start=start)
    plain = _plain(backbone, route(state, FIRST), FIRST, start=start)
    assert torch.allclose(drawn, plain, atol=ALIKE)


def test_a_start_of_another_size_is_refused(backbone: Backbone, state: LifelongState) -> None:
    start = PictureStart(torch.zeros(1, 3, 64, 64), 0.5)
    with pytest.raises(InputError, match="64 x 64"):
        _draw(backbone, state, HALVES, start=start, size=(64, 32))


def test_every_region_and_every_prompt_changes_the_picture(
    backbone: Backbone, state: LifelongState
) -> None:
    both = _draw(backbone, state, HALVES)
    for other in (
        _draw(backbone, state, HALVES[:1]),
        _draw(backbone, state, [HALVES[0], Region(FIRST, RIGHT)]),
        _draw(backbone, state, HALVES, prompt="a photo"),
        _draw(backbone, state, HALVES, alpha=0.5),
        _draw(backbone, state, HALVES, softness=0.2),
        _draw(backbone, state, HALVES, negative="a horse"),
        _draw(backbone, state, HALVES, seed=4),
    ):
        assert (both - other).abs().max() > 100 * ALIKE


def test_the_rest_is_not_drawn_with_what_regions_name(
    backbone: Backbone, state: LifelongState
) -> None:
    """With hard routing it is the base model, or the adapter of what the whole prompt adds."""
    rest, own = region_slots(backbone, state, BOTH, HALVES[:1])
    assert rest.prompt == BOTH
    assert rest.state is not None and own.state is not None
    second, first = route(state, SECOND), route(state, FIRST)
    assert all(torch.equal(rest.state.adapter[key], second.adapter[key]) for key in second.adapter)
    assert all(torch.equal(own.state.adapter[key], first.adapter[key]) for key in first.adapter)
    rest = region_slots(backbone, state, BOTH, HALVES)[0]
    assert rest.state is None and list(rest.vectors) == ["thing_1", "thing_2"]


NOUNS = [Region("a photo of a dog", LEFT), Region("a photo of a cat", RIGHT)]


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_the_base_model_lays_out_before_what_was_learned_comes_in(
    backbone: Backbone, state: LifelongState, alpha: float
) -> None:
    """Up to the end it would be the base model's picture; the learned part goes on from there."""
    given: list[tuple[int, int, Tensor]] = []
    advance = RegionalSampler.advance

    def noted(self: RegionalSampler, pictures: Underway, *rest: Any) -> Tensor:
        begun = pictures.done
        latents = advance(self, pictures, *rest)
        given.append((begun, pictures.done, latents.clone()))
        return latents

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RegionalSampler, "advance", noted)
        delayed = _draw(backbone, state, HALVES, steps=4, delay=0.5, alpha=alpha, count=2)
        assert [ends[:2] for ends in given] == [(0, 2), (2, 4)]
        plain = "a dog and a cat on the beach"
        _draw(backbone, None, NOUNS, prompt=plain, steps=4, delay=0.5, alpha=alpha, count=2)
        _draw(backbone, state, HALVES, steps=4, alpha=alpha, count=2)
    assert torch.equal(given[0][2], given[2][2]), "the nouns, by the base model"
    assert torch.equal(delayed, given[1][2])
    at_once = given[-1][2]
    assert (delayed - at_once).abs().amax((1, 2, 3)).min() > 100 * ALIKE
    assert (delayed - given[3][2]).abs().amax((1, 2, 3)).min() > 100 * ALIKE


def test_without_concepts_delay_changes_nothing(backbone: Backbone) -> None:
    drawn = _draw(backbone, None, NOUNS, prompt="a beach", steps=4)
    delayed = _draw(backbone, None, NOUNS, prompt="a beach", steps=4, delay=0.5)
    assert torch.equal(drawn, delayed)


def test_a_concept_outside_all_regions_is_there_from_the_first_step(
    backbone: Backbone, state: LifelongState
) -> None:
    slots = plain_slots(region_slots(backbone, state, BOTH, HALVES[:1]))
    assert [slot.prompt for slot in slots] == [
        "a dog and embedding:thing_2 cat on the beach",
        "a photo of a dog",
    ]
    second = route(state, SECOND)
    assert slots[0].state is not None and slots[1].state is None
    assert all(
        torch.equal(slots[0].state.adapter[key], second.adapter[key]) for key in second.adapter
    )


@pytest.mark.parametrize(
    ("delay", "steps", "before"),
    [(0.0, 9, 0), (0.05, 9, 1), (0.3, 20, 6), (0.99, 4, 3), (0.3, 1, 0)],
)
def test_some_steps_are_left_for_what_was_learned(delay: float, steps: int, before: int) -> None:
    assert delayed_steps(delay, steps) == before


def test_a_prompt_that_slots_share_is_encoded_once(
    backbone: Backbone, state: LifelongState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where one of them has the base model, which reads the same words."""
    slots = region_slots(backbone, state, BOTH, [Region(BOTH, LEFT), HALVES[1]])
    slots += region_slots(backbone, state, BOTH, HALVES)[:1]
    assert [slot.state is None for slot in slots] == [True, False, False, True]
    encoded: list[str] = []
    encode = backbone.text.encode

    def noted(prompts: list[str], *given: Any) -> Any:
        encoded.append(prompts[1])
        return encode(prompts, *given)

    monkeypatch.setattr(backbone.text, "encode", noted)
    encode_slots(backbone, slots, "")
    assert encoded == [BOTH, SECOND]


def test_parts_of_a_limit_and_batches_change_no_picture(
    backbone: Backbone, state: LifelongState
) -> None:
    whole = _draw(backbone, state, HALVES, count=3)
    for limit in (1, 3, 8):
        with counted(backbone) as rows:
            parts = _draw(backbone, state, HALVES, count=3, row_limit=limit)
        assert max(rows) <= limit and sum(rows) == 2 * 3 * 4
        assert torch.allclose(whole, parts, atol=ALIKE)
    assert torch.equal(whole, _draw(backbone, state, HALVES, count=3))
    assert torch.allclose(whole[:1], _draw(backbone, state, HALVES), atol=ALIKE)


@pytest.mark.parametrize(
    ("alpha", "guidance", "rows"), [(0.1, 5.0, 4), (1.0, 5.0, 2), (0.1, 1.0, 3), (1.0, 1.0, 1)]
)
def test_a_step_has_no_rows_that_are_not_used(
    backbone: Backbone, state: LifelongState, alpha: float, guidance: float, rows: int
) -> None:
    with counted(backbone) as seen:
        _draw(backbone, state, HALVES, alpha=alpha, guidance=guidance)
    assert seen == [rows, rows]


def test_overlapping_tiny_and_odd_masks_are_drawn(backbone: Backbone, state: LifelongState) -> None:
    tiny = torch.zeros(512, 300)
    tiny[511, 299] = 0.01
    regions = [Region(FIRST, torch.ones(3, 7)), Region(SECOND, RIGHT), Region("", tiny)]
    steps: list[tuple[int, int]] = []
    drawn = _draw(
        backbone, state, regions, size=(72, 104), on_progress=lambda *done: steps.append(done)
    )
    assert drawn.shape == (1, 4, 9, 13) and drawn.isfinite().all()
    assert steps == [(1, 2), (2, 2)]


def test_pictures_come_out_in_their_range(backbone: Backbone, state: LifelongState) -> None:
    images = _draw(backbone, state, HALVES, as_latents=False, autocast=torch.bfloat16)
    assert images.shape == (1, 3, 64, 64) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


def test_every_region_may_have_a_state_of_its_own(backbone: Backbone, state: LifelongState) -> None:
    own = _draw(backbone, [state, state], HALVES)
    assert torch.allclose(own, _draw(backbone, state, HALVES), atol=ALIKE)
    with pytest.raises(InputError, match="1 states for 2 regions"):
        _draw(backbone, [state], HALVES)


def test_what_cannot_be_drawn_is_refused_before_any_work(
    backbone: Backbone, state: LifelongState
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the model ran")

    other = random_backbone("demo", seed=5)
    handles = [one.unet.register_forward_pre_hook(work) for one in (backbone, other)]
    empty = Region(SECOND, torch.zeros(8, 8))
    unknown = Region("embedding:nobody dog", LEFT)
    cases: list[tuple[type[Exception], str, Any]] = [
        (InputError, "is empty", lambda: _draw(backbone, state, [HALVES[0], empty])),
        (InputError, "nobody", lambda: _draw(backbone, state, [unknown])),
        (InputError, "thing_1", lambda: _draw(backbone, None, HALVES)),
        (StateError, "fingerprint", lambda: _draw(other, state, HALVES)),
        (InputError, "alpha", lambda: _draw(backbone, state, HALVES, alpha=2.0)),
        (InputError, "softness", lambda: _draw(backbone, state, HALVES, softness=-1.0)),
        (InputError, "delay", lambda: _draw(backbone, state, HALVES, delay=1.0)),
        (InputError, "delay", lambda: _draw(backbone, state, HALVES, delay=float("nan"))),
        (InputError, "at least 1", lambda: _draw(backbone, state, HALVES, row_limit=0)),
        (InputError, "at least 1", lambda: _draw(backbone, state, HALVES, count=0)),
        (InputError, "multiples", lambda: _draw(backbone, state, HALVES, size=(60, 64))),
    ]
    for kind, words, attempt in cases:
        with pytest.raises(kind, match=words):
            attempt()
    for handle in handles:
        handle.remove()
