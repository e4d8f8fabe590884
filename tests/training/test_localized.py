"""A concept that captions know in its own words alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.prompts import PromptCache
from lifelong_core.training.batches import Batches, Pictures
from lifelong_core.training.localized import MOST_FILLERS, LocalizedWords

CAPTION = "a photo of embedding:tok teddybear on the beach"
PLAIN = "a photo of teddybear on the beach"
START, VECTORS, NOUN = 4, 2, 2
"""Rows: begin, "a photo of", two vectors, "teddybear" in two tokens."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def vectors(value: float = 0.02) -> dict[str, dict[str, nn.Parameter]]:
    return {"tok": {"clip_l": nn.Parameter(torch.full((VECTORS, 128), value))}}


def encoded(backbone: Backbone, known: dict[str, dict[str, nn.Parameter]], index: int) -> Tensor:
    words = LocalizedWords({"tok": "teddybear"}, seed=3)
    return words.encode(PromptCache(backbone.text), [CAPTION], known, index).context[0]


def test_all_but_the_concepts_words_is_the_plain_caption(backbone: Backbone) -> None:
    plain = backbone.text.encode([PLAIN]).context[0]
    for index in range(20):
        context = encoded(backbone, vectors(), index)
        assert context.shape == plain.shape
        assert torch.allclose(context[:START], plain[:START], atol=1e-5)
        end = START + VECTORS + NOUN
        assert torch.allclose(context[end:], plain[START + NOUN : -VECTORS], atol=1e-5)


def test_the_words_come_from_the_caption_with_other_words_before_them(backbone: Backbone) -> None:
    known = vectors()
    as_they_are = backbone.text.encode([CAPTION], known).context[0, START : START + VECTORS + NOUN]
    rows = [encoded(backbone, known, index)[START : START + VECTORS + NOUN] for index in range(40)]
    assert len({tuple(one[0, :4].tolist()) for one in rows}) > 20
    # Now and then there are no fillers.
    assert any(torch.allclose(one, as_they_are, atol=1e-5) for one in rows)
    moved = f"a photo of red embedding:tok teddybear {'on ' * MOST_FILLERS}"
    red = backbone.text.encode([moved], known).context[0, START + 1 : START + 1 + VECTORS + NOUN]
    assert not torch.allclose(red, as_they_are, atol=1e-3)


def test_the_same_batch_has_the_same_fillers_and_learns(backbone: Backbone) -> None:
    known = vectors()
    assert torch.equal(encoded(backbone, known, 7), encoded(backbone, known, 7))
    encoded(backbone, known, 7).square().sum().backward()
    gradient = known["tok"]["clip_l"].grad
    assert gradient is not None and gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a dog",
        "a photo of embedding:tok on the beach",
        "a photo of embedding:tok teddybears on the beach",
        f"{CAPTION} beside embedding:tok teddybear",
        f"{CAPTION} {'and a dog ' * 30}",
    ],
)
def test_other_prompts_are_as_they_are(backbone: Backbone, prompt: str) -> None:
    """Without the phrase, with it twice, and longer than one chunk."""
    known = vectors()
    cache = PromptCache(backbone.text)
    words = LocalizedWords({"tok": "teddybear"}, seed=3)
    found = words.encode(cache, [prompt], known, 0)
    assert torch.equal(found.context, cache.encode([prompt], known).context)


def test_layerwise_vectors_keep_their_layers(backbone: Backbone) -> None:
    layers = backbone.text.layers
    own = nn.Parameter(torch.randn(layers, VECTORS, 128, generator=torch.manual_seed(0)))
    known = {"tok": {"clip_l": own}}
    words = LocalizedWords({"tok": "teddybear"}, seed=3)
    found = words.encode(PromptCache(backbone.text), [CAPTION, PLAIN], known, 1)
    plain = backbone.text.encode([PLAIN]).context[0]
    assert found.layers is not None
    for layer in range(layers):
        assert torch.allclose(found.layers[0, layer, :START], plain[:START], atol=1e-5)
        assert torch.allclose(found.layers[1, layer], plain, atol=1e-5)
    assert not torch.allclose(found.layers[0, 0, START], found.layers[0, 1, START], atol=1e-3)


def test_batches_use_it_for_the_concept_alone(backbone: Backbone) -> None:
    latents = torch.zeros(1, 1, 4, 8, 8)
    sources = [
        Pictures("concept", latents, (CAPTION,), 1),
        Pictures("prior", latents, ("a photo of a teddybear",), 1),
    ]
    words = LocalizedWords({"tok": "teddybear"}, seed=3)
    batch = Batches(backbone, sources, vectors(), seed=3, localized=words)(5)
    usual = Batches(backbone, sources, vectors(), seed=3)(5)
    assert torch.allclose(batch.prompts.context[0], encoded(backbone, vectors(), 5), atol=1e-5)
    assert torch.allclose(batch.prompts.context[1], usual.prompts.context[1], atol=1e-5)
    assert batch.texts == usual.texts and torch.equal(batch.noisy, usual.noisy)
