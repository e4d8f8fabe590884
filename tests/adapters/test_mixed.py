"""Rows with different adapters in one batch against the same rows, one adapter at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import pytest
import torch

from lifelong_core.adapters import Adapter, AdapterSpec, build_adapter
from lifelong_core.adapters.frozen import frozen_adapter, standing_in
from lifelong_core.adapters.layers import Forward
from lifelong_core.adapters.mixed import MixedAdapters
from lifelong_core.backbone import Backbone, Conditioning, random_backbone
from lifelong_core.errors import StateError
from lifelong_core.objectives import Predictor
from lifelong_core.objectives.predict import RunsUnet
from lifelong_core.seeding import generator

KEYS_AND_VALUES = AdapterSpec(rank=4)
ALL_KINDS_OF_LAYERS = AdapterSpec(
    rank=4, targets=("attn1.to_q", "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
)
ADAPTERS = torch.tensor([2, 0, 1, 0, 2, 1, 2])
ROWS = torch.tensor([0, 1, 0, 1, 0, 1, 1])


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def weights(backbone: Backbone, spec: AdapterSpec, seed: int) -> dict[str, torch.Tensor]:
    return {
        key: torch.randn(value.shape, generator=generator(seed, key)) * 0.1
        for key, value in build_adapter(spec, backbone, seed=0).state().items()
    }


def three(backbone: Backbone, spec: AdapterSpec) -> tuple[Adapter, Adapter, Adapter]:
    """A trainable adapter and two frozen ones."""
    trained = build_adapter(spec, backbone, seed=0)
    trained.load(weights(backbone, spec, 0))
    first, second = (frozen_adapter(spec, backbone, weights(backbone, spec, s)) for s in (1, 2))
    return trained, first, second


def inputs() -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
    draw = generator(1, "inputs")
    count = len(ROWS)
    latents = torch.randn(count, 4, 8, 8, generator=draw)
    return (
        latents,
        torch.randint(1000, (count,), generator=draw),
        Conditioning(torch.randn(2, 77, 128, generator=draw)),
    )


def separately(backbone: Backbone, adapters: tuple[Adapter, ...]) -> torch.Tensor:
    latents, steps, prompts = inputs()
    outputs = []
    for row, number in enumerate(ADAPTERS.tolist()):
        one = slice(row, row + 1)
        with adapters[number].attached(backbone):
            outputs.append(backbone.predict(latents[one], steps[one], prompts[ROWS[one]]))
    return torch.cat(outputs)


def together(backbone: Backbone, mixed: MixedAdapters, rows: slice = slice(None)) -> torch.Tensor:
    latents, steps, prompts = inputs()
    return mixed.predict(
        Predictor(backbone), latents[rows], steps[rows], prompts, ROWS[rows], ADAPTERS[rows]
    )


@pytest.mark.parametrize("spec", [KEYS_AND_VALUES, ALL_KINDS_OF_LAYERS, AdapterSpec("spectral")])
@pytest.mark.parametrize("differentiable", [True, False])
def test_every_row_has_its_own_adapter(
    backbone: Backbone, spec: AdapterSpec, differentiable: bool
) -> None:
    adapters = three(backbone, spec)
    with torch.no_grad():
        expected = separately(backbone, adapters)
    mixed = MixedAdapters(adapters[0], adapters[1:])
    with torch.set_grad_enabled(differentiable), mixed.attached(backbone):
        actual = together(backbone, mixed)
    assert actual.requires_grad == differentiable
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    other = expected[(ADAPTERS != 2).nonzero()[0, 0]]
    assert not torch.allclose(expected[0], other, atol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_the_trained_adapter_has_gradients_and_they_are_its_own(
    backbone: Backbone, checkpointing: bool
) -> None:
    adapters = three(backbone, ALL_KINDS_OF_LAYERS)
    mixed = MixedAdapters(adapters[0], adapters[1:])
    factors = torch.randn(len(ROWS), 4, 8, 8, generator=generator(2, "factors"))
    own = list(adapters[0].named_parameters().values())
    expected = torch.autograd.grad((separately(backbone, adapters) * factors).sum(), own)
    backbone.gradient_checkpointing(checkpointing)
    try:
        with mixed.attached(backbone):
            output = together(backbone, mixed)
            (output * factors).sum().backward()
    finally:
        backbone.gradient_checkpointing(False)
    for parameter, wanted in zip(own, expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(
            parameter.grad, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())
        )
    for teacher in adapters[1:]:
        assert all(p.grad is None for p in teacher.named_parameters().values())


def test_frozen_rows_alone_leave_no_graph(backbone: Backbone) -> None:
    adapters = three(backbone, KEYS_AND_VALUES)
    mixed = MixedAdapters(adapters[0], adapters[1:])
    with mixed.attached(backbone):
        assert not together(backbone, mixed, slice(4, 7)).requires_grad


class Spied:
    """An adapter's `forwards` that tell how many entries one layer is given."""

    KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"

    def __init__(self, forwards: Callable[..., dict], tell: Callable[[int], None]) -> None:
        self.forwards, self.tell = forwards, tell

    def __call__(self, layers: Mapping[str, torch.nn.Linear]) -> dict[str, Forward]:
        made = self.forwards(layers)

        def forward(x: torch.Tensor) -> torch.Tensor:
            self.tell(len(x))
            return made[self.KEY](x)

        return made | {self.KEY: forward}


def test_the_unet_runs_once_for_all_frozen_rows_and_keys_once_per_pair(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = three(backbone, KEYS_AND_VALUES)
    seen: list[tuple[int, int]] = []

    def tell(number: int, count: int) -> None:
        seen.append((number, count))

    for number, adapter in enumerate(adapters):
        spied = Spied(adapter.forwards, partial(tell, number))
        monkeypatch.setattr(adapter, "forwards", spied)
    mixed = MixedAdapters(adapters[0], adapters[1:])
    passes: list[int] = []
    predictor = Predictor(backbone)

    def counted(latents: torch.Tensor, *rest: Any) -> torch.Tensor:
        passes.append(len(latents))
        return predictor(latents, *rest)

    latents, steps, prompts = inputs()
    with mixed.attached(backbone):
        mixed.predict(cast(RunsUnet, counted), latents, steps, prompts, ROWS, ADAPTERS)
    assert passes == [5, 2]
    assert sorted(seen) == [(0, 1), (1, 2), (2, 2)]


def test_the_base_is_bit_for_bit_as_before_even_after_an_error(backbone: Backbone) -> None:
    latents, steps, prompts = inputs()
    before_weights = {key: value.clone() for key, value in backbone.unet.state_dict().items()}
    with torch.no_grad():
        before = backbone.predict(latents, steps, prompts[ROWS])
    adapters = three(backbone, ALL_KINDS_OF_LAYERS)
    mixed = MixedAdapters(adapters[0], adapters[1:])
    with pytest.raises(ZeroDivisionError), mixed.attached(backbone):
        together(backbone, mixed).sum().backward()
        raise ZeroDivisionError
    with torch.no_grad():
        assert torch.equal(backbone.predict(latents, steps, prompts[ROWS]), before)
    after = backbone.unet.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before_weights.items())
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_adapters_that_cannot_share_a_batch_are_refused(backbone: Backbone) -> None:
    trained, teacher, _ = three(backbone, KEYS_AND_VALUES)
    other = build_adapter(AdapterSpec(rank=2), backbone, seed=0)
    with pytest.raises(StateError, match="rank 2"):
        MixedAdapters(trained, (teacher, other))
    in_text = build_adapter(AdapterSpec(rank=2, text_encoder=True), backbone, seed=0)
    with pytest.raises(StateError, match="text_encoder"):
        MixedAdapters(in_text, ())
    mixed = MixedAdapters(trained, (teacher,))
    with trained.attached(backbone), pytest.raises(StateError, match="detach"):
        mixed.attached(backbone).__enter__()


def test_an_adapter_stands_in_for_another(backbone: Backbone) -> None:
    trained, teacher, _ = three(backbone, KEYS_AND_VALUES)
    latents, steps, prompts = inputs()

    def output() -> torch.Tensor:
        with torch.no_grad():
            return backbone.predict(latents, steps, prompts[ROWS])

    with teacher.attached(backbone):
        expected = output()
    with trained.attached(backbone):
        before = output()
        with standing_in(teacher, trained, backbone):
            assert torch.equal(output(), expected)
        assert torch.equal(output(), before)
    assert not torch.allclose(before, expected, atol=1e-2)
