"""Text encoders: one and two of them, learned vectors, gradients, weights, caching."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.backbone import FAMILIES, Backbone, Conditioning, random_backbone
from lifelong_core.backbone.modules import empty_text
from lifelong_core.backbone.randomized import randomize
from lifelong_core.errors import InputError
from lifelong_core.prompts import OBJECT_TEMPLATES, ClipText, PromptCache, TextStack, caption_for
from lifelong_core.prompts.captions import SLOT
from lifelong_core.seeding import generator


def small_encoder(family: str, index: int = 0, layers: int = 3, width: int = 64) -> ClipText:
    """A family's text encoder, with its way of reading but few layers and little width."""
    config = FAMILIES[family].text[index]
    above = config.layers - config.output_layer
    config = replace(
        config, width=width, heads=2, intermediate=width, layers=layers, output_layer=layers - above
    )
    encoder = empty_text(config)
    randomize(encoder, 0, config.key, torch.float32, "cpu")
    return encoder


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=6)


@pytest.fixture(scope="module")
def text(backbone: Backbone) -> TextStack:
    return backbone.text


@pytest.fixture(scope="module")
def xl() -> TextStack:
    return TextStack([small_encoder("sdxl", 0, width=32), small_encoder("sdxl", 1, width=64)])


def vector(rows: int, width: int = 128, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=generator(seed, "vector")) * 0.02


def test_rows_follow_the_prompts_and_equal_prompts_are_encoded_once(text: TextStack) -> None:
    seen: list[int] = []
    encoder = text.modules["clip_l"]
    handle = encoder.text_model.encoder.layers[0].register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    encoded = text.encode(["a dog", "a cat", "a dog", "a dog"])
    handle.remove()
    assert seen == [2]
    assert encoded.context.shape == (4, 77, 128)
    assert torch.equal(encoded.context[0], encoded.context[3])
    assert not torch.equal(encoded.context[0], encoded.context[1])
    assert torch.allclose(encoded.context[1], text.encode(["a cat"]).context[0], atol=1e-6)


def test_sd1_reads_the_last_layer_and_its_norm(text: TextStack) -> None:
    encoder = text.modules["clip_l"]
    outputs: list[Tensor] = []
    handle = encoder.text_model.final_layer_norm.register_forward_hook(
        lambda module, inputs, output: outputs.append(output)
    )
    context = text.encode(["a dog"]).context
    handle.remove()
    assert torch.equal(outputs[-1], context)


def layer_output(encoder: ClipText, number: int) -> list[Tensor]:
    kept: list[Tensor] = []
    encoder.text_model.encoder.layers[number].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    return kept


def test_sd2_reads_the_layer_before_the_last_with_the_norm() -> None:
    encoder = small_encoder("sd2")
    kept = layer_output(encoder, 1)
    last = layer_output(encoder, 2)
    encoded = TextStack([encoder]).encode(["a dog"])
    assert torch.allclose(encoded.context, encoder.text_model.final_layer_norm(kept[0]))
    assert encoded.pooled is None
    assert not last


def test_sdxl_joins_both_encoders_without_norm_and_pools_the_projected_end() -> None:
    first, second = small_encoder("sdxl", 0, width=32), small_encoder("sdxl", 1, width=64)
    kept, kept_g, last_g = layer_output(first, 1), layer_output(second, 1), layer_output(second, 2)
    encoded = TextStack([first, second]).encode(["a dog"])
    assert torch.equal(encoded.context, torch.cat([kept[0], kept_g[0]], dim=-1))
    end = second.text_model.final_layer_norm(last_g[0][:, 3])
    assert torch.allclose(encoded.pooled, end @ second.text_projection.weight.T, atol=1e-6)


def test_pooled_comes_from_the_first_chunk(xl: TextStack) -> None:
    prompts = ["a dog", "word " * 90, "(a dog:1.3)"]
    encoded = xl.encode(prompts)
    assert encoded.context.shape == (3, 154, 96)
    assert encoded.pooled.shape == (3, 64)
    for row, prompt in enumerate(prompts):
        alone = xl.encode([prompt])
        assert torch.allclose(encoded.pooled[row], alone.pooled[0], atol=1e-6)
        shape = alone.context.shape[1]
        assert torch.allclose(encoded.context[row, :shape], alone.context[0], atol=1e-6)
    assert torch.allclose(encoded.pooled[0], encoded.pooled[2], atol=1e-6)


def test_padding_differs_between_encoders() -> None:
    padding: dict[str, int] = {}
    for family, index in (("sd1", 0), ("sd2", 0), ("sdxl", 0), ("sdxl", 1)):
        encoder = small_encoder(family, index)
        seen: list[Tensor] = []
        encoder.text_model.embeddings.token_embedding.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.append(inputs[0])
        )
        TextStack([encoder]).encode(["a dog"])
        assert seen[0][0, :4].tolist() == [49406, 320, 1929, 49407]
        padding[f"{family} {encoder.config.key}"] = int(seen[0][0, 4:].unique())
    expected = {"sd1 clip_l": 49407, "sd2 clip_h": 0, "sdxl clip_l": 49407, "sdxl clip_g": 0}
    assert padding == expected


def test_weights_move_positions_away_from_the_empty_prompt(text: TextStack) -> None:
    plain = text.encode(["a dog"]).context[0]
    empty = text.encode([""]).context[0]
    weighted = text.encode(["a (dog:1.5)", "a dog"]).context
    assert torch.allclose(weighted[0, 2], empty[2] + 1.5 * (plain[2] - empty[2]), atol=1e-5)
    assert torch.allclose(weighted[0, [0, 1, 3]], plain[[0, 1, 3]], atol=1e-6)
    assert torch.allclose(weighted[1], plain, atol=1e-6)


def test_a_vector_equal_to_a_word_means_the_word(text: TextStack) -> None:
    table = text.modules["clip_l"].token_table
    vectors = {"rex": {"clip_l": table[[1929]].clone()}}
    named = text.encode(["a embedding:rex on grass"], vectors).context
    assert torch.allclose(named, text.encode(["a dog on grass"]).context, atol=1e-6)


def test_gradient_reaches_the_vectors_and_nothing_else(xl: TextStack) -> None:
    vectors = {
        "rex": {"clip_l": vector(2, 32).requires_grad_(), "clip_g": vector(2, 64).requires_grad_()},
        "tom": {"clip_l": vector(1, 32).requires_grad_(), "clip_g": vector(1, 64).requires_grad_()},
    }
    tables = {key: encoder.token_table.clone() for key, encoder in xl.modules.items()}
    encoded = xl.encode(["a embedding:rex dog", "a cat", "a embedding:rex dog"], vectors)
    (encoded.context.square().sum() + encoded.pooled.square().sum()).backward()
    for key, encoder in xl.modules.items():
        gradient = vectors["rex"][key].grad
        assert gradient is not None and bool((gradient.abs().sum(1) > 0).all())
        assert vectors["tom"][key].grad is None
        assert all(p.grad is None for p in encoder.parameters())
        assert torch.equal(encoder.token_table, tables[key])


def test_gradient_is_right(text: TextStack) -> None:
    start = vector(1)
    direction = vector(1, seed=2)
    target = torch.randn(77, 128, generator=generator(3, "target"))

    def loss(vectors: Tensor) -> Tensor:
        context = text.encode(["a (embedding:rex:1.2) dog"], {"rex": {"clip_l": vectors}}).context
        return (context[0] * target).sum()

    leaf = start.clone().requires_grad_()
    loss(leaf).backward()
    with torch.no_grad():
        slope = (loss(start + 0.05 * direction) - loss(start - 0.05 * direction)) / 0.1
    assert slope.item() == pytest.approx((leaf.grad * direction).sum().item(), rel=2e-2)


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_weights_compute_in_fp32(autocast: bool) -> None:
    """Only the weights' own rounding separates fp16 from fp32, in values and in gradients."""
    full, half = random_backbone("demo", seed=6).text, random_backbone("demo", seed=6).text
    half.to(dtype=torch.bfloat16)
    assert half.modules["clip_l"].token_table.dtype == torch.float16
    for encoder in full.modules.values():
        encoder.half().float()
    results = []
    for stack in (full, half):
        leaf = vector(1).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            context = stack.encode(["a embedding:rex dog"], {"rex": {"clip_l": leaf}}).context
        (context * torch.arange(128.0)).sum().backward()
        results.append((context.detach(), leaf.grad))
    assert results[0][0].dtype == torch.float32
    assert torch.allclose(results[0][0], results[1][0], atol=1e-6)
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-3)


def test_half_precision_graph_keeps_no_copies_of_the_weights() -> None:
    text = random_backbone("demo", dtype=torch.float16).text
    weights = sum(layer.numel() for layer in text.modules["clip_l"].text_model.encoder.parameters())
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.float32:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    vectors = {"rex": {"clip_l": vector(1).requires_grad_()}}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        text.encode(["embedding:rex"], vectors)
    assert sum(kept.values()) < weights / 4


@pytest.mark.parametrize(
    "vectors",
    [
        {"clip_l": torch.zeros(1, 768)},
        {"clip_g": torch.zeros(1, 128)},
        {"clip_l": torch.zeros(128)},
        {"clip_l": torch.zeros(0, 128)},
        {},
    ],
)
def test_vectors_of_another_base_model_are_refused(
    text: TextStack, vectors: dict[str, Tensor]
) -> None:
    with pytest.raises(InputError, match=r"'rex'.*clip_l \[m, 128\]"):
        text.encode(["a embedding:rex dog"], {"rex": vectors})


def test_vectors_must_have_as_many_rows_for_both_encoders(xl: TextStack) -> None:
    uneven = {"clip_l": torch.zeros(1, 32), "clip_g": torch.zeros(2, 64)}
    with pytest.raises(InputError, match="with one m"):
        xl.encode(["embedding:rex dog"], {"rex": uneven})


def test_nouns_start_concepts(text: TextStack) -> None:
    table = text.modules["clip_l"].token_table
    assert torch.equal(text.noun_vector("dog")["clip_l"], table[[1929]])
    both = text.noun_vector("teddy bear")["clip_l"]
    assert both.shape == (1, 128)
    pair = text.tokenize("teddy bear").chunks[0][1:3]
    assert torch.allclose(both[0], table[[p.item for p in pair]].mean(0))
    with pytest.raises(InputError, match="class noun"):
        text.noun_vector("  ")


def test_no_prompt_is_refused(text: TextStack) -> None:
    with pytest.raises(InputError, match="no prompt"):
        text.encode([])


class Counter:
    """Counts the chunks that an encoder reads."""

    def __init__(self, encoder: ClipText) -> None:
        self.chunks = 0
        layer = encoder.text_model.encoder.layers[0]
        self.handle = layer.register_forward_hook(self)

    def __call__(self, module: object, inputs: object, output: Tensor) -> None:
        self.chunks += len(output)


def test_cache_encodes_again_only_what_is_trained(text: TextStack) -> None:
    trained = {"rex": {"clip_l": vector(1).requires_grad_()}}
    fixed = {"tom": {"clip_l": vector(1, seed=2)}}
    vectors = {**trained, **fixed}
    prompts = ["a dog", "a embedding:rex dog", "a embedding:tom cat", "a dog"]
    cache = PromptCache(text)
    counter = Counter(text.modules["clip_l"])
    first = cache.encode(prompts, vectors)
    assert counter.chunks == 3
    second = cache.encode(prompts, vectors)
    assert counter.chunks == 4
    cache.encode(["a dog"], vectors)
    assert counter.chunks == 4
    counter.handle.remove()
    expected = text.encode(prompts, vectors).context
    assert torch.allclose(first.context, expected, atol=1e-6)
    assert torch.allclose(second.context, expected, atol=1e-6)
    second.context[1].square().sum().backward()
    assert trained["rex"]["clip_l"].grad.abs().sum() > 0
    with torch.no_grad():
        trained["rex"]["clip_l"] += vector(1, seed=3)
    changed = cache.encode(prompts, vectors).context
    assert not torch.allclose(changed[1], second.context[1], atol=1e-4)
    assert torch.equal(changed[0], second.context[0])


def test_cache_keeps_nothing_when_the_encoder_is_trained(text: TextStack) -> None:
    cache = PromptCache(text, trains_encoder=True)
    counter = Counter(text.modules["clip_l"])
    cache.encode(["a dog"])
    cache.encode(["a dog"])
    counter.handle.remove()
    assert counter.chunks == 2


def test_cache_keeps_pooled_and_long_prompts(xl: TextStack) -> None:
    cache = PromptCache(xl)
    prompts = ["word " * 90, "a dog", "a dog"]
    cache.encode(["a dog"])
    encoded, expected = cache.encode(prompts), xl.encode(prompts)
    assert torch.allclose(encoded.context, expected.context, atol=1e-6)
    assert torch.allclose(encoded.pooled, expected.pooled, atol=1e-6)


def test_conditioning_rows() -> None:
    both = Conditioning(torch.arange(6.0).reshape(3, 1, 2), torch.arange(3.0).reshape(3, 1))
    assert len(both) == 3
    assert both[torch.tensor([2, 0])].pooled.flatten().tolist() == [2, 0]
    assert both[slice(1, 3)].context.shape == (2, 1, 2)
    joined = Conditioning.cat([both, both[slice(0, 1)]])
    assert len(joined) == 4 and joined.pooled.shape == (4, 1)
    assert Conditioning(both.context)[slice(0, 1)].pooled is None


def test_every_caption_template_holds_the_phrase() -> None:
    assert len(set(OBJECT_TEMPLATES)) == len(OBJECT_TEMPLATES) >= 5
    for template in OBJECT_TEMPLATES:
        caption = caption_for(template, "embedding:rex dog")
        assert "embedding:rex dog" in caption and SLOT not in caption
        assert TextStack([small_encoder("sd1")]).tokenize(
            caption, {"rex": {"clip_l": torch.zeros(1, 64)}}
        ).tokens == {"rex"}


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_caption_templates_without_one_slot_are_refused(template: str) -> None:
    with pytest.raises(InputError, match="exactly once"):
        caption_for(template, "dog")
