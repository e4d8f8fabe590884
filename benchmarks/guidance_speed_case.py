"""One generation in a process of its own: what it took, as one line of JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionAttendAndExcitePipeline

from benchmarks.guidance import METHODS, PLAIN
from lifelong_core.attention import AttentionGuidance, Pair, find_pairs, prompt_tokens
from lifelong_core.backbone import Backbone, load_backbone
from lifelong_core.evaluation.phases import measured
from lifelong_core.sampling import generate

PROMPT = "a photo of a red dog and a blue cat on the beach"
PAIRS: tuple[Pair, ...] = (("red", "dog"), ("blue", "cat"))
FAMILIES = {"demo": "demo", "sd15": "sd1"}
OURS = "caa_oaa"
EXCITE, EXCITE_ONCE = "attend_and_excite", "attend_and_excite_without_refinement"
CASES = (PLAIN, OURS, EXCITE, EXCITE_ONCE)


@dataclass(frozen=True)
class Case:
    """name: of CASES. checkpoint: the model's file. repeats: how often it draws after warming up.
    dtype: of the weights, such as "float32"."""

    name: str
    checkpoint: str
    steps: int
    repeats: int
    device: str
    dtype: str
    threads: int


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    torch.set_num_threads(case.threads)
    torch.set_flush_denormal(True)
    dtype = getattr(torch, case.dtype)
    backbone = load_backbone(Path(case.checkpoint), dtype=dtype, device=case.device)
    run = _diffusers(backbone) if case.name in (EXCITE, EXCITE_ONCE) else _ours(backbone, case.name)
    with measured(backbone.device) as loaded:
        run(case, 1)  # to warm up
    clock, cpu = [], []
    with measured(backbone.device) as phase:
        for _ in range(case.repeats):
            began, worked = time.monotonic(), time.process_time()
            run(case, case.steps)
            if case.device == "cuda":
                torch.cuda.synchronize()
            clock.append(time.monotonic() - began)
            cpu.append(time.process_time() - worked)
    told = {"cpu": cpu, "wall": clock, "peak_mib": phase.peak_mib, "warm_mib": loaded.peak_mib}
    sys.stdout.write(json.dumps(told | {"case": asdict(case)}) + "\n")


def _ours(backbone: Backbone, name: str) -> Callable[[Case, int], object]:
    """`generate`, plain or with the settings of the recorded quality results."""

    def run(case: Case, steps: int) -> object:
        settings = METHODS[name]
        attention = None if settings is None else AttentionGuidance(settings, [PAIRS])
        return generate(
            backbone, [PROMPT], seed=0, steps=steps, as_latents=True, attention=attention
        )

    return run


def _diffusers(backbone: Backbone) -> Callable[[Case, int], object]:
    """diffusers' own pipeline on the same UNet, from prompts that are encoded already."""
    schedule = backbone.schedule
    alphas = schedule.alphas_cumprod.double().cpu()
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    scheduler = DDIMScheduler(
        trained_betas=(1.0 - alphas / before).float().numpy(),
        prediction_type=schedule.prediction_type,
        clip_sample=False,
    )
    pipeline = StableDiffusionAttendAndExcitePipeline(
        vae=None,
        text_encoder=None,
        tokenizer=None,
        unet=backbone.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    encoded = backbone.text.encode([PROMPT, ""]).context.to(backbone.device, backbone.dtype)
    places = find_pairs(prompt_tokens(backbone.text.tokenize(PROMPT)), PAIRS)
    side = backbone.family.default_size

    def run(case: Case, steps: int) -> object:
        options: dict[str, Any] = {} if case.name == EXCITE else {"thresholds": {}}
        return pipeline(
            prompt=None,
            prompt_embeds=encoded[:1],
            negative_prompt_embeds=encoded[1:],
            token_indices=[pair.noun[0] for pair in places.pairs],
            height=side,
            width=side,
            num_inference_steps=steps,
            max_iter_to_alter=steps // 2,
            guidance_scale=backbone.family.guidance,
            attn_res=(16, 16),
            output_type="latent",
            **options,
        )

    return run


if __name__ == "__main__":
    main()
