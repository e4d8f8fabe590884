"""Both sides of the comparison of speed do the same work, and the result is made of their times."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks import step_profile
from benchmarks.comfyui_trainer import ComfyTrainer, weights_in
from benchmarks.everything_adapter import EverythingAdapter, dense_is_cheaper
from benchmarks.plain_peft import PlainPeft, text_encoder, token_ids
from benchmarks.speed_data import BATCH, PRIOR_BATCH, SpeedData
from benchmarks.speed_lessons import everything_lesson, lora_lesson
from benchmarks.training_speed import (
    COMFYUI,
    OURS,
    OURS_ALL,
    OURS_LORA,
    PLAIN,
    PLAIN_LORA,
    Way,
    here,
    summary,
    take_turns,
)
from lifelong_core.adapters.spec import KEY_VALUE
from lifelong_core.backbone import Backbone, random_backbone, save_single_file
from lifelong_core.concepts import make_task

RANK = 16


def small_data(side: int = 8) -> SpeedData:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 32, 32, generator=generator) for _ in range(2)]
    task = make_task("my_dog", "dog", images, size=32)
    latents = torch.randn(6, 4, side, side, generator=generator)
    return SpeedData(task, latents[:2], latents[2:])


def changed_adapter(backbone: Backbone, rank: int = RANK) -> EverythingAdapter:
    """All weights at random, so that every one of them has an effect."""
    adapter = EverythingAdapter(backbone, rank, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in adapter.named_parameters().values():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.05)
    return adapter


def test_our_adapter_trains_what_comfyui_trains(tmp_path: Path) -> None:
    backbone = random_backbone("demo")
    checkpoint = tmp_path / "random.safetensors"
    save_single_file(backbone, checkpoint)
    adapter = EverythingAdapter(backbone, 4, seed=0)
    latents, context = torch.randn(12, 4, 8, 8), torch.randn(12, 77, 128)
    with ComfyTrainer(checkpoint, latents, context, rank=4, threads=1) as comfyui:
        assert adapter.comfyui_shapes() == comfyui.weights
        found = comfyui.run("one_prompt", 1)
    assert weights_in(comfyui.weights) == sum(
        p.numel() for p in adapter.named_parameters().values()
    )
    assert found["rows"] == BATCH + PRIOR_BATCH
    assert len(found["cpu"]) == len(found["wall"]) == 1


@pytest.mark.parametrize("side", [8, 16])
def test_the_adapters_effect_is_the_changed_weight(side: int) -> None:
    """Also its gradients. Small pictures make most layers take the way by their factors."""
    backbone = random_backbone("demo")
    adapter = changed_adapter(backbone)
    for tensor in (*backbone.unet.parameters(), *adapter.named_parameters().values()):
        tensor.data = tensor.data.double()
    parameters = list(adapter.named_parameters().values())
    generator = torch.Generator().manual_seed(3)
    latents, direction = torch.randn(2, 2, 4, side, side, generator=generator).double()
    context = torch.randn(2, 77, 128, generator=generator).double()
    inputs = (latents, torch.tensor([3, 700]), context)

    with adapter.attached(backbone):
        answer = backbone.unet(*inputs, return_dict=False)[0]
    got = torch.autograd.grad((answer * direction).sum(), parameters)

    base = dict(backbone.unet.named_parameters())
    changed = {name: base[name] + change for name, change in adapter.changes(backbone).items()}
    assert changed.keys() == base.keys()
    expected = torch.func.functional_call(backbone.unet, changed, inputs, {"return_dict": False})[0]
    wanted = torch.autograd.grad((expected * direction).sum(), parameters)

    assert relative(answer, expected) < 1e-9
    for name, one, other in zip(adapter.named_parameters(), got, wanted, strict=True):
        assert relative(one, other) < 1e-6, name
    plain = backbone.unet(*inputs, return_dict=False)[0]
    assert relative(plain, expected) > 1e-2


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm().detach() / other.norm().detach().clamp_min(1e-30))


def test_the_base_model_is_itself_again_afterwards() -> None:
    backbone = random_backbone("demo")
    adapter = changed_adapter(backbone)
    with adapter.attached(backbone):
        pass
    assert not [m for m in backbone.unet.modules() if "forward" in m.__dict__]


def test_the_cheaper_way_is_chosen_by_its_products() -> None:
    assert dense_is_cheaper(torch.empty(64, 64), 16, 3072)
    assert dense_is_cheaper(torch.empty(64, 64, 3, 3), 16, 3072)
    assert not dense_is_cheaper(torch.empty(192, 192), 16, 192)
    assert not dense_is_cheaper(torch.empty(128, 128, 3, 3), 16, 768)
    assert not dense_is_cheaper(torch.empty(64, 64), 16, 12)


def test_the_plain_loop_has_our_text_encoder_and_trains_as_many_weights() -> None:
    data, backbone = small_data(), random_backbone("demo")
    vector = backbone.text.noun_vector("dog")
    caption = data.captions[0]
    expected = backbone.text.encode([caption], {"my_dog": vector}).context
    encoder = text_encoder(backbone)
    with torch.no_grad():
        encoder.get_input_embeddings().weight[-1] = vector["clip_l"][0]
        context = encoder(token_ids(caption, "my_dog", "dog")[None], return_dict=False)[0]
    assert relative(context, expected) < 1e-5

    for token in (True, False):
        plain = PlainPeft(random_backbone("demo"), data, list(KEY_VALUE), RANK, token=token)
        before = [p.detach().clone() for p in plain.parameters]
        plain.run(1, lambda: None)
        changed = [not torch.equal(a, b) for a, b in zip(before, plain.parameters, strict=True)]
        # The first step moves one factor of LoRA: the other one's gradient is zero.
        assert sum(changed[: len(plain.lora)]) >= len(plain.lora) / 2
        if token:
            assert torch.equal(before[-1][:-1], plain.table[:-1])
            assert not torch.equal(before[-1][-1], plain.table[-1])
        with lora_lesson(random_backbone("demo"), data, token=token) as ours:
            assert ours.trained() == plain.trained()


def test_our_lessons_run_and_go_on() -> None:
    data, backbone = small_data(), random_backbone("demo")
    adapter = EverythingAdapter(backbone, RANK, seed=0)
    steps: list[int] = []
    with everything_lesson(backbone, adapter, data) as lesson:
        for _ in range(2):
            before = {name: p.detach().clone() for name, p in adapter.named_parameters().items()}
            lesson.run(1, lambda: steps.append(1))
    assert len(steps) == 2
    # All are trained: in the second step every gradient is there.
    same = [name for name, p in adapter.named_parameters().items() if torch.equal(p, before[name])]
    assert same == []


def test_the_profile_has_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_profile, "STEPS", 1)
    backbone = random_backbone("demo")
    with lora_lesson(backbone, small_data(), token=True) as lesson:
        parts = step_profile.parts_of(lesson, backbone)
        operators = step_profile.operators_of(lesson)
    assert {"UNet forward", "text encoder forward", "backward pass"} <= parts.keys()
    assert len(parts) == 5
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1.0, abs=1e-3)
    assert parts["UNet forward"]["share"] > parts["text encoder forward"]["share"]
    assert len(operators) == step_profile.OPERATORS
    assert operators[0]["share"] >= operators[-1]["share"] > 0
    assert any("mm" in row["operator"] for row in operators)


def way(name: str, cpu: list[float], wall: list[float]) -> Way:
    return Way(name, 7, lambda _: {}, wall=wall, cpu=cpu)


def test_the_summary_compares_medians_with_the_fastest_way_of_comfyui() -> None:
    times = {
        PLAIN: 0.6,
        OURS: 0.4,
        PLAIN_LORA: 0.5,
        OURS_LORA: 0.4,
        OURS_ALL: 0.5,
        COMFYUI["one_prompt"]: 0.8,
        COMFYUI["accumulated"]: 0.75,
        COMFYUI["batch"]: 9.0,
    }
    table = {
        name: way(name, [0.01, cpu, 99.0], [2 * cpu, 2 * cpu, 99.0]) for name, cpu in times.items()
    }
    table[OURS].wall = [1.2]
    assert summary(table) == {
        "speedup_over_plain_peft": 1.5,
        "speedup_over_plain_peft_lora_only": 1.25,
        "speedup_over_comfyui_train_lora": 1.5,
        "speedup_over_comfyui_train_lora_batch": 18.0,
        "clock_speedup_over_plain_peft": 1.0,
        "clock_speedup_over_plain_peft_lora_only": 1.25,
        "clock_speedup_over_comfyui_train_lora": 1.5,
        "clock_speedup_over_comfyui_train_lora_batch": 18.0,
        "comfyui_way": COMFYUI["accumulated"],
    }


def test_the_ways_take_turns_in_changing_order() -> None:
    order: list[tuple[str, int]] = []

    def measured(name: str) -> Way:
        def measure(steps: int) -> dict[str, list[float]]:
            order.append((name, steps))
            return {"wall": [2.0] * steps, "cpu": [1.0] * steps}

        return Way(name, 7, measure)

    ways = [measured("a"), measured("b")]
    take_turns(ways, rounds=2, steps=3)
    assert order == [("a", 3), ("b", 3), ("b", 3), ("a", 3)]
    assert ways[0].row() == {
        "run": "a",
        "trained_weights": 7,
        "unet_rows_per_step": 12,
        "steps": 6,
        "cpu_seconds_per_step": 1.0,
        "wall_seconds_per_step": 2.0,
        "core_share": 0.5,
        "cpu_seconds": [1.0] * 6,
    }


def test_a_step_that_warms_up_is_not_counted() -> None:
    def run(steps: int, after_step: Callable[[], None]) -> None:
        for _ in range(steps):
            after_step()

    found = here("x", SimpleNamespace(run=run, trained=lambda: 7)).measure(3)
    assert len(found["wall"]) == len(found["cpu"]) == 3
