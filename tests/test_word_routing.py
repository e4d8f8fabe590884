"""Each word read with its own concept's adapter, all others by the base model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.by_words import AdaptersByWords
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.adapters.layers import base_forward
from lifelong_core.adapters.spec import TARGETS
from lifelong_core.attention.layout import Layout, Row
from lifelong_core.attention.regional import RegionalUnet
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.drawing import knowing
from lifelong_core.errors import StateError
from lifelong_core.localized_words import encode_localized, localized_concepts
from lifelong_core.methods import drawing_state, step_adapters
from lifelong_core.prompts import Conditioning
from lifelong_core.prompts.conditioning import NOBODYS, UNKNOWN
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from lifelong_core.word_routing import prompted, records_by_words
from tests.consolidation.conftest import example_state

BOTH = "a photo of a embedding:thing_2 cat and a embedding:thing_1 dog"
KEY = "up_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


def taught(
    backbone: Backbone,
    *localized: bool,
    method: str = "cidm",
    spec: AdapterSpec | None = None,
) -> LifelongState:
    """A lesson for each, with or without localized words."""
    state = example_state(backbone, len(localized), spec)
    records = [
        replace(one, settings={**one.settings, "method": method, "localized_words": words})
        for one, words in zip(state.records, localized, strict=True)
    ]
    return replace(state, records=tuple(records))


def drawn(backbone: Backbone, state: LifelongState | None, prompt: str) -> torch.Tensor:
    with prompted(backbone, state, prompt) as known:
        return generate(
            backbone, [prompt], seed=1, steps=2, as_latents=True,
            vectors=known.vectors, localized=known.localized, adapters=known.adapters,
        )  # fmt: skip


@pytest.mark.parametrize("method", ["lora_composite", "lora_switch"])
def test_adapters_that_change_between_steps_draw(backbone: Backbone, method: str) -> None:
    state = taught(backbone, False, False, method=method)
    with knowing(backbone, state) as vectors:
        newest = generate(backbone, [BOTH], seed=1, steps=2, as_latents=True, vectors=vectors)
    changing = step_adapters(state, backbone)
    assert changing is not None
    wanted = generate(
        backbone, [BOTH], seed=1, steps=2, as_latents=True, adapters=changing,
        vectors=state.vectors,
    )  # fmt: skip
    found = drawn(backbone, state, BOTH)
    assert torch.equal(found, wanted) and not torch.equal(found, newest)


def test_rows_know_whose_words_they_are(backbone: Backbone) -> None:
    state = taught(backbone, True, True)
    prompts = [BOTH, "a dog", "embedding:thing_1 and a dog"]
    read = encode_localized(backbone.text, prompts, state.vectors, state.concepts)
    assert read.owners is not None and read.owners.shape == (3, 77)
    # begin, a photo of a, <2> cat, and a, <1> dog
    wanted = [NOBODYS] * 5 + [1, 1] + [NOBODYS] * 2 + [0, 0] + [NOBODYS] * 66
    assert read.owners[0].tolist() == wanted
    assert set(read.owners[1].tolist()) == {NOBODYS} and set(read.owners[2].tolist()) == {UNKNOWN}
    moved = read.to(dtype=torch.float16)
    assert moved.owners is not None and moved.owners.dtype == torch.long
    together = Conditioning.cat([read[torch.tensor([1])], backbone.text.encode(["word " * 80])])
    assert together.owners is not None and together.owners.shape == (2, 154)
    assert together.owners[:, 0].tolist() == [NOBODYS, UNKNOWN]
    assert backbone.text.encode(["a dog"]).owners is None


@torch.no_grad()
def test_each_adapter_is_heard_in_its_own_rows(backbone: Backbone) -> None:
    state = taught(backbone, True, True)
    adapters = [frozen_adapter(state.adapter_spec, backbone, one.adapter) for one in state.records]
    read = encode_localized(backbone.text, [BOTH, "a dog"], state.vectors, state.concepts)
    layer = backbone.unet.get_submodule(KEY)
    found: list[torch.Tensor] = []
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    handle = layer.register_forward_hook(lambda _m, _a, out: found.append(out))
    with AdaptersByWords(adapters).attached(backbone):
        output = backbone.predict(latents, torch.tensor([500, 500]), read)
        found_without = layer(read.context)
    handle.remove()
    plain = base_forward(layer, read.context)
    assert torch.equal(found_without, plain), "outside of a pass nobody is heard"
    answer = found[0]
    for row, owner in enumerate(read.owners[0].tolist()):
        wanted = plain[0, row]
        if owner != NOBODYS:
            wanted = wanted + adapters[owner].deltas()[f"unet.{KEY}"] @ read.context[0, row]
        assert torch.allclose(answer[0, row], wanted, atol=1e-4), row
    assert torch.equal(answer[1], plain[1])
    alone = backbone.predict(latents, torch.tensor([500, 500]), read)
    assert not torch.allclose(alone[0], output[0], atol=1e-4)
    assert torch.allclose(alone[1], output[1], atol=1e-5)


def test_adapters_of_more_than_words_are_refused(backbone: Backbone) -> None:
    for spec in (AdapterSpec(rank=2, targets=TARGETS), AdapterSpec(rank=2, text_encoder=True)):
        state = example_state(backbone, 1, spec)
        with pytest.raises(StateError, match="more than how words are read"):
            AdaptersByWords([frozen_adapter(spec, backbone, state.adapter)])


def test_prompts_of_localized_concepts_are_drawn_by_words(backbone: Backbone) -> None:
    state = taught(backbone, True, True)
    assert records_by_words(state, BOTH) == state.records
    by_words = drawn(backbone, state, BOTH)
    whole = drawing_state(state, BOTH, backbone.text)
    with knowing(backbone, whole) as vectors:
        mean = generate(
            backbone, [BOTH], seed=1, steps=2, as_latents=True, vectors=vectors,
            localized=localized_concepts(state),
        )  # fmt: skip
    assert not torch.allclose(by_words, mean, atol=1e-3)
    first = state.records[:1]
    assert records_by_words(state, "a embedding:thing_1 dog and a cat") == first


@pytest.mark.parametrize(
    ("localized", "method", "targets", "prompt"),
    [
        ((True, True), "cidm", ("attn2.to_k",), "a dog on grass"),
        ((True, True), "cidm", ("attn2.to_k",), "a embedding:thing_1 on grass"),
        ((True, False), "cidm", ("attn2.to_k",), BOTH),
        ((True, True), "lora_merge", ("attn2.to_k",), BOTH),
        ((True, True), "hard_routing", ("attn2.to_k", "attn1.to_q"), BOTH),
    ],
)
def test_other_prompts_are_drawn_as_the_method_says(
    backbone: Backbone,
    localized: tuple[bool, ...],
    method: str,
    targets: tuple[str, ...],
    prompt: str,
) -> None:
    state = taught(backbone, *localized, method=method, spec=AdapterSpec(rank=2, targets=targets))
    whole = drawing_state(state, prompt, backbone.text)
    with knowing(backbone, whole) as vectors:
        wanted = generate(
            backbone, [prompt], seed=1, steps=2, as_latents=True, vectors=vectors,
            localized=localized_concepts(state),
        )  # fmt: skip
    assert torch.equal(drawn(backbone, state, prompt), wanted)


def test_without_a_state_the_base_model_draws(backbone: Backbone) -> None:
    alone = generate(backbone, ["a dog"], seed=1, steps=2, as_latents=True)
    assert torch.equal(drawn(backbone, None, "a dog"), alone)


@torch.no_grad()
def test_in_regions_too_other_rows_are_the_base_models(backbone: Backbone) -> None:
    state = taught(backbone, True, True)
    adapter = frozen_adapter(state.adapter_spec, backbone, state.records[0].adapter)
    prompt = "a photo of a embedding:thing_1 dog"
    read = encode_localized(backbone.text, ["", prompt], state.vectors, state.concepts)
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    layout = Layout([Row((1,), 1)], [()], (16, 16), 0.0, torch.device("cpu"))
    unet = RegionalUnet(backbone, [adapter], read)
    with unet.attached():
        regional = unet.predict(latents, torch.tensor(500), layout, (128, 128))
    with AdaptersByWords([adapter]).attached(backbone):
        whole = backbone.predict(latents, torch.tensor([500]), read[1:2], (128, 128))
    assert torch.allclose(regional, whole, atol=1e-4)
