"""Several processes train what one would: the same weights from the same batches."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing, nn

from lifelong_core.files import load_tensors
from lifelong_core.seeding import generator
from lifelong_core.world.pretrain import parallel
from lifelong_core.world.pretrain.stage import Stage, run_stage

STEPS = 6


def train_stage(folder: Path) -> None:
    net = nn.Linear(3, 2, bias=False)
    nn.init.normal_(net.weight, generator=generator(0, "weights"))

    def loss(step: int) -> Tensor:
        batch = parallel.share(torch.randn(8, 3, generator=generator(1, step)))
        return net(batch).square().sum(1).mean()

    stage = Stage("tiny", folder, net, [torch.optim.SGD(net.parameters(), 0.1)], loss, warmup=1)
    run_stage(stage, steps=STEPS)


def process(rank: int, port: int, folder: str) -> None:
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    with parallel.process_group():
        with parallel.first_alone():
            marker = Path(folder) / "first"
            assert marker.exists() == bool(rank)
            marker.touch()
        assert parallel.agreed(rank + 5) == 5
        train_stage(Path(folder))


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    train_stage(tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = tmp_path / "two"
    both.mkdir()
    multiprocessing.spawn(process, (port, str(both)), nprocs=2)
    alone, together = (
        load_tensors(tmp_path / name / "tiny.checkpoint.safetensors")[0]["model.weight"]
        for name in ("one", "two")
    )
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_one_process_alone_shares_with_nobody() -> None:
    with parallel.process_group(), parallel.first_alone():
        assert parallel.processes() == 1
        assert parallel.share(torch.arange(3)).tolist() == [0, 1, 2]
        assert parallel.agreed(7) == 7


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 2)
    with pytest.raises(ValueError, match="3 cannot be shared by 2"):
        parallel.share(torch.arange(3))
