"""A UNet with regions, layer by layer against a slow computation from weights and their changes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.adapters import Adapter, AdapterSpec, build_adapter
from lifelong_core.adapters.frozen import freeze
from lifelong_core.adapters.spec import TARGETS
from lifelong_core.attention.layout import Layout, Row
from lifelong_core.attention.regional import RegionalUnet
from lifelong_core.attention.regions import box_mask
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.errors import StateError
from lifelong_core.prompts import Conditioning
from lifelong_core.seeding import generator

LEFT, RIGHT = box_mask(0, 0, 0.5, 1, (16, 16)), box_mask(0.5, 0, 1, 1, (16, 16))
CORNER = box_mask(0, 0, 0.5, 0.5, (16, 16))
TEXTS = ["", "a dog and a cat", "a red dog", "a blue cat"]
FIRST, LAST = "down_blocks.0.attentions.0.transformer_blocks.0", "up_blocks.2.attentions.1"
BLOCK = f"{LAST}.transformer_blocks.0"
T = torch.tensor(600)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=0)


def _adapter(backbone: Backbone, seed: int, spec: AdapterSpec | None = None) -> Adapter:
    adapter = build_adapter(spec or AdapterSpec(rank=2, targets=TARGETS), backbone, seed=seed)
    draw = generator(seed, "weights")
    adapter.load({k: torch.randn(v.shape, generator=draw) / 20 for k, v in adapter.state().items()})
    freeze(adapter)
    return adapter


def _latents(rows: int) -> Tensor:
    """The same latents in every row."""
    return torch.randn(1, 4, 16, 16, generator=generator(0, "latents")).repeat(rows, 1, 1, 1)


def _layout(rows: Sequence[Row], *masks: Tensor, softness: float = 0.0) -> Layout:
    return Layout(rows, [masks], (16, 16), softness, torch.device("cpu"))


@torch.no_grad()
def _run(
    backbone: Backbone,
    adapters: Sequence[Adapter | None],
    layout: Layout,
    path: str | None = None,
    texts: Sequence[str] = TEXTS,
) -> tuple[Tensor, Tensor, Tensor]:
    """The model's output, and what the layer at `path` got and gave."""
    unet = RegionalUnet(backbone, adapters, backbone.text.encode(texts))
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Tensor, ...], kwargs: object, out: Tensor) -> None:
        seen.extend((args[0], out))

    module = backbone.unet.get_submodule(path or f"{BLOCK}.attn2")
    handle = module.register_forward_hook(see, with_kwargs=True)
    with unet.attached():
        output = unet.predict(_latents(len(layout.rows)), T, layout, (128, 128))
    handle.remove()
    return output, *seen


def _weight(backbone: Backbone, adapter: Adapter | None, path: str) -> Tensor:
    weight = backbone.unet.get_submodule(path).weight
    return weight if adapter is None else weight + adapter.deltas()[f"unet.{path}"]


def _slowly(
    backbone: Backbone, adapter: Adapter | None, path: str, hidden: Tensor, context: Tensor
) -> Tensor:
    """Cross-attention of one cell [C] to one prompt [T, W], head by head: [C]."""
    layer = backbone.unet.get_submodule(path)
    query = _weight(backbone, adapter, f"{path}.to_q") @ hidden
    key = context @ _weight(backbone, adapter, f"{path}.to_k").T
    value = context @ _weight(backbone, adapter, f"{path}.to_v").T
    heads = []
    for q, k, v in zip(*(x.chunk(layer.heads, -1) for x in (query, key, value)), strict=True):
        heads.append((k @ q / len(q) ** 0.5).softmax(0) @ v)
    out = _weight(backbone, adapter, f"{path}.to_out.0") @ torch.cat(heads)
    return out + layer.to_out[0].bias


@torch.no_grad()
def test_every_cell_attends_to_its_own_prompt_by_its_own_adapter(backbone: Backbone) -> None:
    adapters = [_adapter(backbone, seed) for seed in (1, 2, 3)]
    rows = [Row((0, 0, 0), 0), Row((1, 2, 3), 1), Row((1, None, 3), 3)]
    layout = _layout(rows, CORNER, RIGHT)
    _, hidden, given = _run(backbone, adapters, layout, f"{BLOCK}.attn2")
    contexts = backbone.text.encode(TEXTS).context
    for row, cell in [(0, 0), (1, 0), (1, 12), (1, 200), (2, 0), (2, 12), (0, 255)]:
        top, left = cell // 16 < 8, cell % 16 < 8
        slot = 2 if not left else 1 if top and rows[row].prompts[1] is not None else 0
        prompt = rows[row].prompts[slot]
        assert prompt is not None
        slow = _slowly(
            backbone, adapters[slot], f"{BLOCK}.attn2", hidden[row, cell], contexts[prompt]
        )
        assert torch.allclose(given[row, cell], slow, atol=1e-4), (row, cell)


@torch.no_grad()
def test_self_attention_has_each_change_in_its_own_cells(backbone: Backbone) -> None:
    adapters = [None, _adapter(backbone, 1)]
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        path = f"{BLOCK}.attn1.{part}"
        layout = _layout([Row((1, 2), 1), Row((1, None), 1)], LEFT)
        _, hidden, given = _run(backbone, adapters, layout, path)
        plain = nn.functional.linear(
            hidden, _weight(backbone, None, path), backbone.unet.get_submodule(path).bias
        )
        change = hidden @ adapters[1].deltas()[f"unet.{path}"].T
        wanted = plain + LEFT.flatten()[:, None] * change * torch.tensor([1, 0])[:, None, None]
        assert torch.allclose(given, wanted, atol=1e-4)
        assert change.abs().max() > 1e-2


@torch.no_grad()
def test_a_regions_adapter_and_prompt_do_not_touch_the_outside(backbone: Backbone) -> None:
    """At the first cross-attention layer; behind it self-attention carries them everywhere."""
    spec = AdapterSpec(rank=2)
    path, rows = f"{FIRST}.attn2", [Row((1, 2), 1)]
    _, hidden, base = _run(backbone, [None, None], _layout([Row((1, 1), 1)], LEFT), path)
    _, same, changed = _run(
        backbone, [None, _adapter(backbone, 1, spec)], _layout(rows, LEFT), path
    )
    assert torch.equal(hidden, same)
    outside = RIGHT.flatten().bool()
    assert torch.allclose(changed[:, outside], base[:, outside], atol=1e-6)
    assert (changed - base)[:, ~outside].abs().amax(-1).min() > 1e-4


@torch.no_grad()
def test_soft_edges_mix_what_both_sides_give(backbone: Backbone) -> None:
    adapters = [None, _adapter(backbone, 1, AdapterSpec(rank=2))]
    path = f"{FIRST}.attn2"
    soft = _layout([Row((1, 2), 1)], LEFT, softness=0.1)
    _, _, mixed = _run(backbone, adapters, soft, path)
    _, _, inside = _run(backbone, adapters, _layout([Row((1, 2), 1)], torch.ones(4, 4)), path)
    _, _, outside = _run(backbone, adapters, _layout([Row((1, None), 1)], LEFT), path)
    share = torch.zeros(256)
    part = next(part for part in soft.parts(256) if part.slot == 1)
    assert part.shares is not None
    share[part.cells] = part.shares
    assert 0 < float(share.reshape(16, 16)[0, 8]) < 0.5
    assert torch.allclose(mixed, outside + share[:, None] * (inside - outside), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "vera", "key_value"])
def test_one_region_everywhere_is_the_adapter_attached(backbone: Backbone, kind: str) -> None:
    spec = AdapterSpec(kind)
    adapter = _adapter(backbone, 1, spec)
    layout = _layout([Row((None, 2), 2), Row((0, 3), 3)], torch.ones(9, 9))
    output, *_ = _run(backbone, [None, adapter], layout)
    with adapter.attached(backbone):
        plain = backbone.predict(_latents(2), T.expand(2), backbone.text.encode(TEXTS[2:]))
    assert torch.allclose(output, plain, atol=1e-5)


@torch.no_grad()
def test_layers_have_contexts_of_their_own(backbone: Backbone) -> None:
    encoded = backbone.text.encode(TEXTS)
    layers = torch.randn(4, backbone.text.layers, 77, 128, generator=generator(0, "layers"))
    prompts = Conditioning(encoded.context, None, layers)
    unet = RegionalUnet(backbone, [None, None], prompts)
    with unet.attached():
        layout = _layout([Row((1, 2), 1)], torch.ones(4, 4))
        output = unet.predict(_latents(1), T, layout, (128, 128))
    plain = backbone.predict(_latents(1), T.expand(1), prompts[slice(2, 3)])
    assert torch.allclose(output, plain, atol=1e-5)


@torch.no_grad()
def test_one_adapter_in_all_slots_is_attached_whatever_its_kind(backbone: Backbone) -> None:
    adapter = _adapter(backbone, 1, AdapterSpec("spectral"))
    output, *_ = _run(backbone, [adapter, adapter], _layout([Row((1, 1), 1)], LEFT))
    with adapter.attached(backbone):
        plain = backbone.predict(_latents(1), T.expand(1), backbone.text.encode(TEXTS[1:2]))
    assert torch.allclose(output, plain, atol=1e-4)
    with pytest.raises(StateError, match="spectral"):
        RegionalUnet(backbone, [None, adapter], backbone.text.encode(TEXTS))


@torch.no_grad()
def test_rows_do_not_depend_on_what_shares_their_pass(backbone: Backbone) -> None:
    adapters = [None, _adapter(backbone, 1), _adapter(backbone, 2)]
    rows = [Row((0, 0, 0), 0), Row((1, 2, 3), 1), Row((1, 2, None), 2), Row((1, None, 3), 3)]
    together, *_ = _run(backbone, adapters, _layout(rows, CORNER, RIGHT))
    for number, row in enumerate(rows):
        alone, *_ = _run(backbone, adapters, _layout([row], CORNER, RIGHT))
        assert torch.allclose(together[number], alone[0], atol=1e-4)


@torch.no_grad()
def test_the_base_model_is_as_it_was_afterwards(backbone: Backbone) -> None:
    prompts = backbone.text.encode(TEXTS[:1])
    before = backbone.predict(_latents(1), T.expand(1), prompts)
    unet = RegionalUnet(backbone, [None, _adapter(backbone, 1)], backbone.text.encode(TEXTS))
    with pytest.raises(RuntimeError, match="stop"), unet.attached():
        raise RuntimeError("stop")
    assert torch.equal(before, backbone.predict(_latents(1), T.expand(1), prompts))
    adapter = _adapter(backbone, 2)
    with (
        adapter.attached(backbone),
        pytest.raises(StateError, match="adapter attached"),
        unet.attached(),
    ):
        pass
