"""Earlier tokens are trained on to the weights as they are now, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.backbone import Backbone
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import ConsolidationSettings, consolidate
from lifelong_core.consolidation.shift_embeddings import ShiftEmbeddings
from lifelong_core.errors import StateError
from lifelong_core.memory import ShortTermMemory
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState

PHASE = ShiftEmbeddings()
SETTINGS = ConsolidationSettings(shift_iterations=2, batch_size=2, shift_learning_rate=1e-2)
States = Callable[..., LifelongState]
Tasks = Callable[[int], ConceptTask]


def memory_of(concepts: tuple[int, ...]) -> ShortTermMemory:
    images = torch.rand(len(concepts), 3, 64, 64, generator=generator(0, "memory"))
    prompts = tuple(f"a photo of embedding:thing_{number + 1}" for number in concepts)
    return ShortTermMemory(images, prompts, concepts, drawn_by="the state before the lesson")


def shifted(
    backbone: Backbone, state: LifelongState, task: ConceptTask, **changes: object
) -> LifelongState:
    given = {"settings": SETTINGS, "memory": memory_of((0, 0, 1))} | changes
    return consolidate(backbone, task, state, phases=(PHASE,), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("text_encoder", [False, True])
def test_only_the_remembered_tokens_move(
    backbone: Backbone, state_after: States, task_of: Tasks, text_encoder: bool
) -> None:
    state = state_after(4, AdapterSpec(rank=2, text_encoder=text_encoder))
    after = shifted(backbone, state, task_of(4))
    moved = [
        not torch.equal(new.vectors["clip_l"], old.vectors["clip_l"])
        for new, old in zip(after.concepts, state.concepts, strict=True)
    ]
    assert moved == [True, True, False, False]
    assert all(torch.equal(after.adapter[key], value) for key, value in state.adapter.items())
    for new, old in zip(after.records, state.records, strict=True):
        assert (new.task_hash, new.concept.token) == (old.task_hash, old.concept.token)
        assert all(torch.equal(new.adapter[key], value) for key, value in old.adapter.items())
    report = after.records[-1].metrics["consolidation"]["shift_embeddings"]
    assert len(report["terms"]["denoising"]) == 2
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


def test_the_first_step_goes_down_the_loss_of_the_remembered_pictures(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    """Adam's first step is the sign of the gradient, which is found here picture by picture."""
    state, memory = state_after(2), memory_of((0,))
    one = replace(SETTINGS, shift_iterations=1, batch_size=1)
    after = shifted(backbone, state, task_of(2), memory=memory, settings=one)
    before = state.concepts[0].vectors["clip_l"]
    step = after.concepts[0].vectors["clip_l"] - before

    draw = generator(one.seed, "noise", 0)
    t = torch.randint(1000, (1,), generator=draw)
    latents = backbone.codec.encode(memory.images)
    noise = torch.randn(latents.shape, generator=draw)
    vector = before.clone().requires_grad_()
    vectors = {"thing_1": {"clip_l": vector}}
    with frozen_adapter(state.adapter_spec, backbone, state.adapter).attached(backbone):
        encoded = backbone.text.encode(memory.prompts, vectors)
        output = backbone.predict(backbone.schedule.add_noise(latents, noise, t), t, encoded)
    loss = (output - backbone.schedule.target(latents, noise, t)).square().mean()
    (gradient,) = torch.autograd.grad(loss, vector)
    clear = gradient.abs() > 1e-2 * gradient.abs().max()
    assert torch.equal(step[clear].sign(), -gradient[clear].sign())
    torch.testing.assert_close(
        step[clear].abs(), torch.full_like(step[clear], 1e-2), rtol=0.05, atol=0
    )


def test_what_it_needs_is_said(backbone: Backbone, state_after: States, task_of: Tasks) -> None:
    one = state_after(1)
    assert shifted(backbone, one, task_of(1), memory=None).content_hash == one.content_hash
    state = state_after(2)
    with pytest.raises(StateError, match="no remembered pictures"):
        shifted(backbone, state, task_of(2), memory=None)
    with pytest.raises(StateError, match="concept 2, but the state knows 1"):
        shifted(backbone, state, task_of(2), memory=memory_of((1,)))
