"""What is VeRA's own: shared random matrices, two vectors per layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lifelong_core.adapters import AdapterSpec, VeraAdapter
from lifelong_core.adapters.lora import dense_is_cheaper
from lifelong_core.adapters.vera import random_matrices
from lifelong_core.sharing.naming import layers


def test_the_change_is_two_diagonals_and_the_corners_of_shared_matrices() -> None:
    linear = {"small": nn.Linear(5, 3), "large": nn.Linear(7, 9)}
    adapter = VeraAdapter(AdapterSpec("vera", rank=4), linear)
    a, b = random_matrices(4, [(3, 5), (9, 7)])
    assert a.shape == (4, 7) and b.shape == (9, 4)
    adapter.load({key: torch.randn_like(value) for key, value in adapter.state().items()})
    state = adapter.state()
    for key, (out, width) in {"small": (3, 5), "large": (9, 7)}.items():
        left, right = torch.diag(state[f"{key}.b"]), torch.diag(state[f"{key}.d"])
        expected = left @ b[:out] @ right @ a[:, :width]
        torch.testing.assert_close(adapter.deltas()[key].detach(), expected)


def test_a_fresh_adapter_starts_where_the_paper_does() -> None:
    state = VeraAdapter(AdapterSpec("vera", rank=4), {"x": nn.Linear(5, 3)}).state()
    assert torch.equal(state["x.d"], torch.full((4,), 0.1))
    assert torch.equal(state["x.b"], torch.zeros(3))


def test_the_matrices_are_the_same_on_every_machine() -> None:
    """Weights of a saved state mean nothing with others."""
    a, b = random_matrices(256, [(320, 768), (1280, 768)])
    assert a.shape == (256, 768) and b.shape == (1280, 256)
    expected_a = torch.tensor([0.0808863938, 0.0528465621, -0.00118217699])
    expected_b = torch.tensor([0.147508338, 0.0867631584, 0.0484165326])
    torch.testing.assert_close(a[0, :3], expected_a, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(b[-1, -3:], expected_b, rtol=1e-6, atol=1e-8)
    assert float(a.abs().max()) <= (6 / 768) ** 0.5
    assert float(b.abs().max()) <= (6 / 256) ** 0.5


@pytest.mark.parametrize("shape", [(8, 8), (96, 96)])
def test_both_ways_of_computing_agree_in_value_and_gradient(shape: tuple[int, int]) -> None:
    """Rank 2: 8x8 takes W + ΔW, 96x96 the low-rank path; both against the formula."""
    layer = nn.Linear(*shape).requires_grad_(False)
    adapter = VeraAdapter(AdapterSpec("vera", rank=2), {"x": layer})
    assert dense_is_cheaper(*shape, 2) == (shape == (8, 8))
    adapter.load({key: torch.randn_like(value) for key, value in adapter.state().items()})
    d, b = adapter.named_parameters().values()
    matrix_a, matrix_b = random_matrices(2, [shape])
    x = torch.randn(5, shape[0], requires_grad=True)
    expected = layer(x) + ((x @ matrix_a.mT) * d) @ matrix_b.mT * b
    actual = adapter.forwards({"x": layer})["x"](x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    weights = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad((actual * weights).sum(), (x, d, b)),
        torch.autograd.grad((expected * weights).sum(), (x, d, b)),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_parameter_count_at_true_size() -> None:
    """Σ (rank + out): 33,152 weights at rank 256 on K and V of SD1's cross-attention, against
    792,576 of a LoRA of rank 16."""
    spec = AdapterSpec("vera")
    linear = {
        layer: nn.Linear(width, out, bias=False, device="meta")
        for layer, (out, width) in layers("sd1").items()
        if layer.endswith(spec.targets)
    }
    assert len(linear) == 32
    adapter = VeraAdapter(spec, linear)
    count = sum(p.numel() for p in adapter.named_parameters().values())
    assert count == 32 * 256 + 2 * 12_480 == 33_152
