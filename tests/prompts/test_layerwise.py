"""Layer-wise concept tokens in the text encoders: contexts per layer, gradients, mixed batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.backbone import FAMILIES, Backbone, Conditioning, random_backbone
from lifelong_core.backbone.context_layers import family_context_layers
from lifelong_core.backbone.modules import empty_text
from lifelong_core.backbone.randomized import randomize
from lifelong_core.errors import InputError
from lifelong_core.prompts import PromptCache, TextStack, single_vectors, vectors_of_layer
from lifelong_core.seeding import generator

LAYERS = 10
PROMPT = "a (embedding:rex:1.2) dog on grass"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=6)


@pytest.fixture(scope="module")
def text(backbone: Backbone) -> TextStack:
    return backbone.text


def vectors(*shape: int, seed: int = 1) -> dict[str, Tensor]:
    return {"clip_l": torch.randn(*shape, 128, generator=generator(seed, "vectors")) * 0.02}


def chunks_read(text: TextStack) -> list[int]:
    """Grows by the number of chunks of every pass through the encoder."""
    seen: list[int] = []
    text.modules["clip_l"].text_model.encoder.layers[0].register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    return seen


@pytest.mark.parametrize(
    ("family", "count"), [("demo", 10), ("sd1", 16), ("sd2", 16), ("sdxl", 70)]
)
def test_layers_are_counted_in_the_order_in_which_they_run(family: str, count: int) -> None:
    names = family_context_layers(family)
    assert len(names) == count
    assert [name.split("_")[0] for name in names] == sorted(
        (name.split("_")[0] for name in names), key=["down", "mid", "up"].index
    )


def test_every_layers_context_is_that_of_its_own_vectors(text: TextStack) -> None:
    """Against encoding the prompt once per layer with that layer's vectors as the only ones."""
    own = vectors(LAYERS, 2)
    encoded = text.encode([PROMPT], {"rex": own})
    assert encoded.layers is not None and encoded.layers.shape == (1, LAYERS, 77, 128)
    for layer in range(LAYERS):
        alone = text.encode([PROMPT], {"rex": vectors_of_layer(own, layer)})
        torch.testing.assert_close(encoded.at_layer(layer), alone.context, rtol=0, atol=2e-6)
    mean = text.encode([PROMPT], {"rex": single_vectors(own)})
    torch.testing.assert_close(encoded.context, mean.context, rtol=0, atol=2e-6)


def test_equal_vectors_for_all_layers_are_the_single_ones(text: TextStack) -> None:
    """Up to rounding: one batch of 12 rows and one of a single row are multiplied differently."""
    single = vectors(2)
    repeated = {"clip_l": single["clip_l"].expand(LAYERS, -1, -1)}
    encoded = text.encode([PROMPT], {"rex": repeated})
    expected = text.encode([PROMPT], {"rex": single}).context
    for layer in range(LAYERS):
        assert torch.equal(encoded.at_layer(layer), encoded.at_layer(0))
    torch.testing.assert_close(encoded.at_layer(0), expected, rtol=0, atol=2e-6)


def test_long_prompts_keep_all_their_chunks(text: TextStack) -> None:
    own, long = vectors(LAYERS, 1), "word " * 70 + "embedding:rex, " + "snow " * 20
    encoded = text.encode([long, PROMPT], {"rex": own})
    for row, prompt in enumerate([long, PROMPT]):
        alone = text.encode([prompt], {"rex": vectors_of_layer(own, 5)}).context
        length = alone.shape[1]
        torch.testing.assert_close(encoded.at_layer(5)[row, :length], alone[0], rtol=0, atol=2e-6)
    assert encoded.layers is not None and encoded.layers.shape[2] == 154


def test_prompts_without_such_a_concept_cost_and_are_the_same() -> None:
    text = random_backbone("demo", seed=6).text
    before = text.encode(["a dog", "a cat"])
    seen = chunks_read(text)
    known = {"rex": vectors(LAYERS, 2), "tom": vectors(2)}
    after = text.encode(["a dog", "a cat"], known)
    assert seen == [2] and after.layers is None
    assert torch.equal(before.context, after.context)
    seen.clear()
    mixed = text.encode(["a dog", PROMPT, "a embedding:tom cat", PROMPT], known)
    # Three different prompts, the empty one that weights need, and one per layer.
    assert seen == [3 + 1 + LAYERS]
    assert mixed.layers is not None
    for layer in range(LAYERS):
        assert torch.equal(mixed.at_layer(layer)[[0, 2]], mixed.context[[0, 2]])
        assert torch.equal(mixed.at_layer(layer)[1], mixed.at_layer(layer)[3])


def test_a_prompt_may_name_concepts_of_both_kinds(text: TextStack) -> None:
    known = {"rex": vectors(LAYERS, 1), "tom": vectors(1, seed=2)}
    prompt = "embedding:rex dog and embedding:tom cat"
    encoded = text.encode([prompt], known)
    single = known | {"rex": vectors_of_layer(known["rex"], 3)}
    expected = text.encode([prompt], single).context
    torch.testing.assert_close(encoded.at_layer(3), expected, rtol=0, atol=2e-6)


def test_gradient_of_a_layers_context_reaches_its_own_vectors_alone(text: TextStack) -> None:
    own = {"clip_l": vectors(LAYERS, 2)["clip_l"].requires_grad_()}
    encoded = text.encode([PROMPT, "a cat"], {"rex": own})
    encoded.at_layer(4)[0].square().sum().backward()
    reached = own["clip_l"].grad.abs().sum((1, 2)) > 0
    assert reached.nonzero().flatten().tolist() == [4]


def test_two_encoders_are_joined_layer_by_layer_and_pooled_is_of_the_mean() -> None:
    encoders = []
    for index, width in enumerate((32, 64)):
        config = FAMILIES["sdxl"].text[index]
        above = config.layers - config.output_layer
        config = replace(
            config, width=width, heads=2, intermediate=width, layers=3, output_layer=3 - above
        )
        encoders.append(empty_text(config))
        randomize(encoders[-1], 0, config.key, torch.float32, "cpu")
    text = TextStack(encoders, layers=3)
    draw = generator(9, "vectors")
    own = {
        "clip_l": torch.randn(3, 2, 32, generator=draw) * 0.02,
        "clip_g": torch.randn(3, 2, 64, generator=draw) * 0.02,
    }
    encoded = text.encode(["a cat", "a embedding:rex dog"], {"rex": own})
    for layer in range(3):
        alone = text.encode(["a embedding:rex dog"], {"rex": vectors_of_layer(own, layer)})
        torch.testing.assert_close(encoded.at_layer(layer)[1], alone.context[0], rtol=0, atol=2e-6)
    mean = text.encode(["a cat", "a embedding:rex dog"], {"rex": single_vectors(own)})
    assert encoded.pooled is not None and mean.pooled is not None
    torch.testing.assert_close(encoded.pooled, mean.pooled, rtol=0, atol=2e-6)


def test_the_cache_keeps_contexts_per_layer_only_where_they_differ(text: TextStack) -> None:
    known = {"rex": vectors(LAYERS, 1), "tom": {"clip_l": vectors(LAYERS, 1)["clip_l"].clone()}}
    known["tom"]["clip_l"].requires_grad_()
    prompts = ["a dog", PROMPT, "a embedding:tom cat"]
    cache = PromptCache(text)
    cache.encode(prompts, known)
    assert cache.encode(["a dog"], known).layers is None
    again, expected = cache.encode(prompts, known), text.encode(prompts, known)
    assert again.layers is not None and expected.layers is not None
    torch.testing.assert_close(again.layers, expected.layers, rtol=0, atol=2e-6)
    again.at_layer(7)[2].square().sum().backward()
    reached = known["tom"]["clip_l"].grad.abs().sum((1, 2)) > 0
    assert reached.nonzero().flatten().tolist() == [7]


def test_conditionings_of_both_kinds_share_a_batch() -> None:
    plain = Conditioning(torch.ones(2, 3, 4), torch.ones(2, 5))
    layered = Conditioning(torch.zeros(1, 6, 4), torch.zeros(1, 5), torch.arange(2.0)[
        None, :, None, None
    ].expand(1, 2, 6, 4))  # fmt: skip
    both = Conditioning.cat([plain, layered])
    assert both.layers is not None and both.layers.shape == (3, 2, 6, 4)
    assert torch.equal(both.at_layer(1)[:2], both.context[:2])
    assert both.at_layer(1)[2].unique().tolist() == [1.0]
    chosen = both[torch.tensor([2, 0])].to(dtype=torch.float64)
    assert chosen.at_layer(0).dtype == torch.float64 and chosen.pooled is not None
    assert chosen.at_layer(1)[0].unique().tolist() == chosen.at_layer(1)[1].unique().tolist() == [1]
    assert both[slice(2, 3)].detach().at_layer(0).unique().tolist() == [0.0]
    assert Conditioning.cat([plain, plain]).layers is None


def test_vectors_for_another_number_of_layers_are_refused(text: TextStack) -> None:
    with pytest.raises(InputError, match=r"'rex' has vectors for 70 .* model has 10"):
        text.encode([PROMPT], {"rex": vectors(70, 1)})
    with pytest.raises(InputError, match="another family"):
        text.encode([PROMPT], {"rex": vectors(2, LAYERS, 1)})
