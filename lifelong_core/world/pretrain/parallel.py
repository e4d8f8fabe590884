"""Training by several processes, as `torchrun` starts them: each takes its share of every batch.

Two processes of one thread each train nearly twice as fast on two cores; one process of two
threads gains a half.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, distributed, nn


@contextmanager
def process_group() -> Iterator[None]:
    """Joins the processes that torchrun started; does nothing for a single one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    distributed.init_process_group("gloo")
    try:
        yield
        # One that leaves while the other still talks to it can take it down.
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 is the one that measures and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(batch: Tensor) -> Tensor:
    """This process's equal part of a batch [B, …]. B must divide by the number of processes."""
    if len(batch) % processes():
        raise ValueError(f"A batch of {len(batch)} cannot be shared by {processes()} processes.")
    return batch.chunk(processes())[rank()]


def average_gradients(module: nn.Module) -> None:
    """Mean of every gradient over the processes: what one process would find on the whole batch."""
    if processes() == 1:
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    flat /= processes()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def agreed(number: int) -> int:
    """The number that process 0 holds."""
    if processes() == 1:
        return number
    held = torch.tensor(number)
    distributed.broadcast(held, 0)
    return int(held)


@contextmanager
def first_alone() -> Iterator[None]:
    """Process 0 enters at once, the others when it has left: they find its files."""
    if rank():
        distributed.barrier()
    yield
    if processes() > 1 and not rank():
        distributed.barrier()
