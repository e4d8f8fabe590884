"""LoRA-C averages what every adapter guides to; LoRA-S lets them take turns of five steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters.frozen import frozen_adapter
from lifelong_core.adapters.protocol import Adapter
from lifelong_core.attention import AttentionGuidance, GuidanceSettings, Step
from lifelong_core.backbone import Backbone, Conditioning
from lifelong_core.consolidation.composite import TURN, composite, switch
from lifelong_core.course import solver
from lifelong_core.drawing import knowing
from lifelong_core.errors import InputError, StateError
from lifelong_core.evaluation.drawing import Pictures, draw
from lifelong_core.methods import METHODS, drawing_state, step_adapters
from lifelong_core.sampling import StepAdapters, generate
from lifelong_core.seeding import generator
from lifelong_core.state import LifelongState

StateAfter = Callable[..., LifelongState]
PROMPT = "a photo of embedding:thing_1 dog"


def latents(
    backbone: Backbone, state: LifelongState, adapters: StepAdapters | None, **options: object
) -> Tensor:
    settings = {"seed": 3, "steps": 2, "size": (64, 64), "as_latents": True, **options}
    return generate(
        backbone, [PROMPT], vectors=state.vectors, adapters=adapters, **settings  # type: ignore[arg-type]
    )  # fmt: skip


def naive(backbone: Backbone, state: LifelongState, per_step: Sequence[Sequence[int]]) -> Tensor:
    """One prediction after another: the lessons' adapters of each step, guidance by hand."""
    prompt = backbone.text.encode([PROMPT], state.vectors)
    empty = backbone.text.encode([""])
    x = torch.randn(4, 8, 8, generator=generator(3, "noise", 0))[None]
    scheduler, scale = solver(backbone.schedule), backbone.family.guidance
    scheduler.set_timesteps(len(per_step))
    for lessons, t in zip(per_step, scheduler.timesteps, strict=True):
        outputs = []
        for lesson in lessons:
            adapter = frozen_adapter(state.adapter_spec, backbone, state.records[lesson].adapter)
            with adapter.attached(backbone), torch.no_grad():

                def output(rows: Conditioning, x: Tensor = x, t: Tensor = t) -> Tensor:
                    return backbone.predict(x, t[None], rows, (64, 64))

                plain = output(empty)
                outputs.append(plain + scale * (output(prompt) - plain))
        x = scheduler.step(sum(outputs) / len(outputs), t, x, return_dict=False)[0]
    return x


def test_composite_is_the_mean_of_all_guided_predictions(
    backbone: Backbone, state_after: StateAfter
) -> None:
    state = state_after(3)
    found = latents(backbone, state, composite(state, backbone))
    torch.testing.assert_close(found, naive(backbone, state, [(0, 1, 2)] * 2), rtol=1e-3, atol=1e-4)
    one = latents(backbone, state, switch(state, backbone))
    assert float((found - one).abs().max()) > 1e-2


def test_switch_lets_each_lesson_answer_for_five_steps(
    backbone: Backbone, state_after: StateAfter
) -> None:
    state = state_after(2)
    turns = switch(state, backbone)
    first, second = (turns(Step(index, 20))[0] for index in (0, TURN))
    order = [turns(Step(index, 20)) for index in range(4 * TURN)]
    assert order == [[first]] * 5 + [[second]] * 5 + [[first]] * 5 + [[second]] * 5
    assert [turns(Step(index, 6)) for index in range(6)] == [[first]] * 3 + [[second]] * 3
    found = latents(backbone, state, turns, steps=3)
    expected = naive(backbone, state, [(0,), (1,), (0,)])
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_of_one_lesson_both_draw_what_its_adapter_draws_bit_for_bit(
    backbone: Backbone, state_after: StateAfter
) -> None:
    state = state_after(1)
    with knowing(backbone, replace(state, adapter=state.records[0].adapter)):
        alone = latents(backbone, state, None)
    for way in (composite, switch):
        assert torch.equal(latents(backbone, state, way(state, backbone)), alone)
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


@pytest.mark.parametrize(
    ("method", "way"), [("lora_composite", composite), ("lora_switch", switch)]
)
def test_pictures_of_the_evaluation_are_sampled_the_methods_own_way(
    backbone: Backbone, state_after: StateAfter, method: str, way: Callable[..., StepAdapters]
) -> None:
    state = state_after(2)
    settings = {**state.records[-1].settings, "method": method}
    records = (state.records[0], replace(state.records[1], settings=settings))
    state = drawing_state(replace(state, records=records), PROMPT, backbone.text)
    found = draw(backbone, state, Pictures((PROMPT,), seed=3, steps=1, precision="fp32"))
    size = (backbone.family.default_size,) * 2
    own = way(state, backbone)
    expected = latents(backbone, state, own, steps=1, size=size, as_latents=False)
    assert torch.equal(found, expected)
    assert METHODS[method].needs_records and not METHODS[method].one_adapter


def test_what_cannot_be_sampled_is_refused(backbone: Backbone, state_after: StateAfter) -> None:
    state = state_after(2)
    first, second = state.records
    lost = replace(state, records=(replace(first, adapter={}), second))
    for way in (composite, switch):
        with pytest.raises(StateError, match="thing_1"):
            way(lost, backbone)
    assert step_adapters(state, backbone) is None

    def untouched(_step: Step) -> Sequence[Adapter]:
        raise AssertionError("refused before any work is spent")

    guided = AttentionGuidance(GuidanceSettings(), [(("thing_1", "dog"), ("thing_2", "cat"))])
    with pytest.raises(InputError, match="one adapter"):
        latents(backbone, state, untouched, attention=guided)
