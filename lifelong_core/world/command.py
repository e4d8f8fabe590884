"""`python -m lifelong_core world …`: make the demo model, and measure it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from ..backbone import load_backbone
from .evaluate import EvaluateSettings, evaluate
from .judge import load_judge
from .pretrain.run import STAGES, PretrainSettings, pretrain
from .shipped import WEIGHTS, weights_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the `world` commands."""
    commands = parser.add_subparsers(dest="world_command", required=True)
    make = commands.add_parser("pretrain", help="make the demo model from nothing")
    defaults = PretrainSettings(Path(), Path())
    make.add_argument("--folder", type=Path, default=Path(".cache/world"), help="working folder")
    make.add_argument("--weights", type=Path, default=WEIGHTS, help="where the results go")
    make.add_argument("--hours", type=float, default=defaults.hours, help="budget of training")
    make.add_argument("--scenes", type=int, default=defaults.scenes, help="pictures to learn from")
    make.add_argument("--batch", type=int, default=defaults.batch, help="pictures per UNet step")
    make.add_argument("--begin-from", type=Path, help="demo checkpoint that goes on learning")
    make.add_argument("--workers", type=int, default=defaults.workers, help="rendering processes")
    make.add_argument("--seed", type=int, default=defaults.seed)
    make.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    make.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run")
    test = commands.add_parser("evaluate", help="measure how well a demo model draws what is asked")
    wanted = EvaluateSettings()
    test.add_argument("--model", type=Path, help="checkpoint, else the shipped one")
    test.add_argument(
        "--out", type=Path, default=Path(".cache/world/evaluation"), help="result folder"
    )
    test.add_argument("--count", type=int, default=wanted.count, help="prompts per group")
    test.add_argument("--steps", type=int, default=wanted.steps, help="sampling steps")
    test.add_argument("--seed", type=int, default=wanted.seed)
    test.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for command in (make, test):
        command.add_argument("--threads", type=int, default=torch.get_num_threads())


def run(arguments: argparse.Namespace) -> int:
    """Run the chosen command; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    torch.set_flush_denormal(True)  # denormals in convolutions cost a third of the speed on a CPU
    if arguments.world_command == "evaluate":
        return _evaluate(arguments)
    pretrain(
        PretrainSettings(
            folder=arguments.folder,
            weights=arguments.weights,
            hours=arguments.hours,
            scenes=arguments.scenes,
            batch=arguments.batch,
            begin_from=arguments.begin_from,
            workers=arguments.workers,
            device=arguments.device,
            seed=arguments.seed,
            until=arguments.until,
        )
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    backbone = load_backbone(arguments.model or weights_path("demo"), device=arguments.device)
    settings = EvaluateSettings(count=arguments.count, steps=arguments.steps, seed=arguments.seed)
    command = (
        f"python -m lifelong_core world evaluate --count {settings.count} --steps {settings.steps} "
        f"--seed {settings.seed}"
    )
    evaluate(backbone, load_judge(), settings, arguments.out, command=command)
    return 0
