"""Whether guidance's gradients are right however ComfyUI keeps the model's weights on a GPU.

python -m benchmarks.guidance_gpu: ConceptAttentionArtistSampler in a real ComfyUI, on the demo
model (fp32) and on random weights of SD1.5's size (fp16), with all weights on the GPU (`full`, the
reference), with ComfyUI's dynamic loading (the default on NVIDIA), with little free memory, and
with its older ways to offload. Every case runs in a process of its own, on the same noise.

Gradients of the same steps are compared with those of `full`. The first step's must agree up to
rounding, since all begin with the same noise; rounding grows from step to step where a region's
edge falls the other way, so later ones may differ by a few times what `full_again` does. Families
can be measured one by one (`--family`); the record keeps the others.
`unguarded` runs guidance on the dynamically loaded weights themselves, which the node does not do:
it shows what that would cost and counts for nothing. On a CPU there are no such ways to load: only
`full` and `full_again` run there, to try the benchmark itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.checkpoints import checkpoint
from benchmarks.record import RESULTS, Recorder
from lifelong_core.files import load_tensors
from lifelong_core.launch import comfyui
from lifelong_core.launch.console import say
from lifelong_core.launch.paths import CACHE, ROOT

SCRIPT = Path(__file__).with_name("guidance_gpu_case.py")
PROMPT = "a photo of a red dog and a blue cat on the beach"
CONCEPTS = "red dog\nblue cat"
STEPS = 6
FULL, AGAIN, UNGUARDED = "full", "full_again", "unguarded"
ROUNDING = {"float32": 1e-3, "float16": 2e-2}
"""Other kernels may round otherwise; a weight that was overwritten changes a gradient by its own
size."""
NOISE = 3.0
"""How often later steps may exceed the difference of two equal runs, where that is more."""
TIMEOUT = 120.0
LOG_TAIL = 3000


@dataclass(frozen=True)
class Family:
    """backbone: its name in the library. side: of the latent. strength: of both kinds of guidance;
    random weights need more for their gradients to stay normal numbers of fp16. room_mib: free
    memory where there is little, above what guidance needs with its weights, below what ComfyUI
    wants free for two models."""

    backbone: str
    dtype: str
    side: int
    strength: float
    room_mib: int


FAMILIES = {
    "demo": Family("demo", "float32", 16, 1.0, 1024),
    "sd15": Family("sd1", "float16", 64, 1000.0, 3072),
}


@dataclass(frozen=True)
class Way:
    """How ComfyUI is started. dynamic: whether its loading must then be dynamic."""

    options: tuple[str, ...] = ()
    dynamic: bool = False
    tight: bool = False


WAYS = {
    FULL: Way(("--disable-dynamic-vram", "--highvram")),
    AGAIN: Way(("--disable-dynamic-vram", "--highvram")),
    "dynamic": Way(dynamic=True),
    "dynamic_low": Way(dynamic=True, tight=True),
    "legacy_low": Way(("--disable-dynamic-vram",), tight=True),
    "novram": Way(("--novram",)),
    UNGUARDED: Way(dynamic=True, tight=True),
}


@dataclass(frozen=True)
class Case:
    """What a process is told. answer: the file for its tensors. guarded: as the node ships."""

    name: str
    options: tuple[str, ...]
    room_mib: int | None
    guarded: bool
    checkpoint: str
    answer: str
    side: int
    strength: float
    steps: int
    prompt: str = PROMPT
    concepts: str = CONCEPTS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance_gpu")
    parser.add_argument("--family", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--cases", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--cpu", action="store_true", help="only try the benchmark itself")
    options = parser.parse_args()
    cases = [] if options.cpu else options.cases
    names = list(dict.fromkeys([FULL, AGAIN, *cases]))
    recorder = Recorder(
        "guidance_gpu",
        " ".join(["python -m benchmarks.guidance_gpu", *sys.argv[1:]]),
        {
            "steps": STEPS,
            "guided_fraction": 0.5,
            "prompt": PROMPT,
            "families": {name: asdict(family) for name, family in FAMILIES.items()},
            "comfyui_options": {name: " ".join(way.options) for name, way in WAYS.items()},
        },
        folder=CACHE / "guidance_gpu" if options.cpu else RESULTS,
    )
    summary = recorded(recorder)
    for family in options.family:
        summary[family] = measured(family, names, cpu=options.cpu)
        say(f"{family}: {json.dumps(summary[family])}")
        passed = all(result["passed"] for result in summary.values())
        recorder.write({**summary, "passed": passed}, [])
    if options.cpu:
        say("Not available on a CPU: " + ", ".join(name for name in WAYS if name not in names))
    say("All is as it should be." if passed else "Not all is as it should be; see above.")
    raise SystemExit(0 if passed else 1)


def recorded(recorder: Recorder) -> dict[str, Any]:
    """What an earlier command with the same settings found of each family."""
    known = recorder.earlier() or {"summary": {}}
    return {name: known["summary"][name] for name in FAMILIES if name in known["summary"]}


def measured(family: str, names: Sequence[str], *, cpu: bool) -> dict[str, Any]:
    """Every case of a family against `full`, and whether all that count passed."""
    told: dict[str, dict[str, Any]] = {}
    tensors: dict[str, dict[str, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = checkpoint(FAMILIES[family].backbone, Path(folder), torch.float16)
        for name in names:
            case = _case(family, name, weights, Path(folder), cpu=cpu)
            say(f"{family}: {name}")
            told[name] = _run(case)
            if "error" not in told[name]:
                tensors[name] = load_tensors(Path(case.answer))[0]
    results = {name: told[name] | compared(tensors, name) for name in names}
    allowed = tolerances(results[AGAIN], "float32" if cpu else FAMILIES[family].dtype)
    for name, result in results.items():
        result["passed"] = is_right(result, allowed, dynamic=WAYS[name].dynamic)
        if result.get("dynamic", WAYS[name].dynamic) is not WAYS[name].dynamic:
            say(f"{name} measured nothing: ComfyUI's loading was not what it should have been.")
    counting = [result["passed"] for name, result in results.items() if name != UNGUARDED]
    return {**results, "tolerances": allowed, "passed": all(counting)}


def compared(tensors: Mapping[str, Mapping[str, Tensor]], name: str) -> dict[str, Any]:
    """A case's gradients and latent against those of `full`; nothing where one is not there."""
    if name not in tensors or FULL not in tensors:
        return {}
    found, wanted = _gradients(tensors[name]), _gradients(tensors[FULL])
    return {
        "guided_steps": len(found),
        "gradient_norms": [float(gradient.norm()) for gradient in found],
        "first_difference": largest_difference(found[:1], wanted[:1]),
        "gradient_difference": largest_difference(found, wanted),
        "latent_difference": difference(tensors[name]["latent"], tensors[FULL]["latent"]),
    }


def difference(found: Tensor, wanted: Tensor) -> float:
    """Of two tensors, relative to the second; infinite where that is 0 or one is not finite."""
    found, wanted = found.double(), wanted.double()
    relative = float((found - wanted).norm() / wanted.norm())
    return relative if math.isfinite(relative) else math.inf


def largest_difference(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Over the steps; infinite where there are none, or not as many."""
    if not wanted or len(found) != len(wanted):
        return math.inf
    return max(difference(one, other) for one, other in zip(found, wanted, strict=True))


def tolerances(again: Mapping[str, Any], dtype: str) -> dict[str, float]:
    """Name of a difference -> how large it may be. Equal runs say what is noise (`full_again`)."""
    noise: float = again.get("gradient_difference", 0.0)
    later = NOISE * noise if math.isfinite(noise) else 0.0
    return {
        "first_difference": ROUNDING[dtype],
        "gradient_difference": max(ROUNDING[dtype], later),
    }


def is_right(result: Mapping[str, Any], allowed: Mapping[str, float], *, dynamic: bool) -> bool:
    """Whether a case ran, with the loading that it is about, and changed neither its gradients nor
    the pictures after it."""
    return (
        result.get("dynamic") is dynamic
        and result["plain_unchanged"]
        and all(result.get(name, math.inf) <= most for name, most in allowed.items())
    )


def _gradients(tensors: Mapping[str, Tensor]) -> list[Tensor]:
    return [tensors[f"gradient_{step}"] for step in range(len(tensors) - 1)]


def _case(family: str, name: str, weights: Path, folder: Path, *, cpu: bool) -> Case:
    about, way = FAMILIES[family], WAYS[name]
    gpu = (*way.options, "--force-fp16" if about.dtype == "float16" else "--force-fp32")
    case = Case(
        name=name,
        options=gpu,
        room_mib=about.room_mib if way.tight else None,
        guarded=name != UNGUARDED,
        checkpoint=str(weights),
        answer=str(folder / f"{name}.safetensors"),
        side=about.side,
        strength=about.strength,
        steps=STEPS,
    )
    return replace(case, options=("--cpu", "--force-fp32")) if cpu else case


def _run(case: Case) -> dict[str, Any]:
    """What a fresh process tells, or {"error": …} with the kind of error; its log is shown then."""
    command = [sys.executable, str(SCRIPT), str(comfyui.require().path), str(ROOT)]
    try:
        done = subprocess.run(
            [*command, json.dumps(asdict(case))],
            cwd=ROOT,
            env={**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
            capture_output=True,
            text=True,
            check=False,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"more than {TIMEOUT:.0f} s"}
    if done.returncode:
        say(f"{case.name} ended with an error:\n{done.stderr[-LOG_TAIL:]}")
        kinds = re.findall(r"^[\w.]*(?:Error|Exception)\b", done.stderr, re.MULTILINE)
        return {"error": kinds[-1] if kinds else f"exit status {done.returncode}"}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


if __name__ == "__main__":
    main()
