"""Whole pictures with guidance, on random weights of the demo's size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lifelong_core.attention import AttentionGuidance, GuidanceSettings, Pair
from lifelong_core.attention.heat import concept_heat, mean_words
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.errors import InputError
from lifelong_core.sampling import generate

PROMPTS = ["a photo of a red dog and a (blue:1.2) cat", "a cat near a dog" + " on grass" * 40]
PAIRS: list[list[Pair]] = [[("red", "dog"), ("blue", "cat")], [(None, "dog"), (None, "cat")]]
BOTH = GuidanceSettings(caa=1.0, oaa=1.0)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo", seed=4)


def _draw(backbone: Backbone, attention: AttentionGuidance | None, **options: object) -> Tensor:
    return generate(
        backbone,
        PROMPTS,
        seed=1,
        as_latents=True,
        attention=attention,
        **{"steps": 3, **options},  # type: ignore[arg-type]
    )


def test_without_weight_no_bit_changes(backbone: Backbone) -> None:
    plain = _draw(backbone, None)
    assert torch.equal(plain, _draw(backbone, AttentionGuidance(GuidanceSettings(), PAIRS)))
    nowhere = GuidanceSettings(caa=1, guided_fraction=0)
    assert torch.equal(plain, _draw(backbone, AttentionGuidance(nowhere, PAIRS)))


@pytest.mark.parametrize("kind", ["caa", "oaa", "attend_and_excite"])
def test_every_loss_moves_the_picture(backbone: Backbone, kind: str) -> None:
    settings = GuidanceSettings(**{kind: 1.0, "refinement": 1})  # type: ignore[arg-type]
    guided = _draw(backbone, AttentionGuidance(settings, PAIRS))
    assert guided.isfinite().all()
    moved = (guided - _draw(backbone, None)).abs().amax((1, 2, 3)) > 1e-5
    assert moved.tolist() == [True, kind != "oaa"]  # the second prompt's pairs have no concept


def test_the_batch_size_does_not_change_pictures(backbone: Backbone) -> None:
    """The second prompt has two chunks of 77, so the first is repeated where they share a batch."""
    together = AttentionGuidance(BOTH, PAIRS)
    whole = _draw(backbone, together)
    apart = AttentionGuidance(BOTH, PAIRS)
    single = _draw(backbone, apart, batch_size=1)
    assert (whole - single).abs().max() < 1e-3
    assert [len(guide.seen) for guide in together.guides] == [2]  # steps 0 and 1 of 3
    assert [len(guide.seen) for guide in apart.guides] == [2, 2]
    heat = concept_heat(torch.rand(2, 3, 128, 128), mean_words(together.guides[0].seen))
    assert heat.shape == (4, 3, 128, 128)


def test_guidance_works_without_classifier_free_guidance_and_on_epsilon() -> None:
    backbone = random_backbone("demo", seed=4, prediction_type="epsilon")
    settings = GuidanceSettings(caa=1.0, guided_fraction=1.0)
    guided = _draw(backbone, AttentionGuidance(settings, PAIRS), guidance=1.0, steps=2)
    assert guided.isfinite().all()
    assert (guided - _draw(backbone, None, guidance=1.0, steps=2)).abs().max() > 1e-5


def test_an_output_that_is_known_is_not_computed_again(backbone: Backbone) -> None:
    """A loss that no latent changes leaves them; the pass becomes half of the CFG step."""
    alone: list[list[Pair]] = [[(None, "dog")]]
    settings = GuidanceSettings(oaa=1.0)  # of a pair without a concept there is nothing to ask
    rows: list[int] = []
    handle = backbone.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    guided = _draw(backbone, AttentionGuidance(settings, alone), steps=2)
    handle.remove()
    assert rows == [2, 2, 4]  # first step: prompts with gradient, then only the empty ones
    assert torch.allclose(guided, _draw(backbone, None, steps=2), atol=1e-4)


def test_words_that_are_not_there_are_refused_before_any_work(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="noun 'horse'"):
        _draw(backbone, AttentionGuidance(BOTH, [[(None, "horse")]]))
    with pytest.raises(InputError, match="2 prompts and the pairs of 3"):
        _draw(backbone, AttentionGuidance(BOTH, [PAIRS[0]] * 3))
