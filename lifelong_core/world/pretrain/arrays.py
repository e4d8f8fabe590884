"""Arrays that stages are fed with: made once, by several processes where that pays, and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from ...files import atomic_write

log = logging.getLogger(__name__)

CHUNK = 1000


def cached(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array in `path`, made and written first if there is none; memory-mapped."""
    if not path.exists():
        array = make()

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as handle:
                np.save(handle, array)

        atomic_write(path, write)
        log.info("wrote %s %s", path.name, array.shape)
    return np.load(path, mmap_mode="r")


def in_processes(
    make: Callable[[int, int], np.ndarray], total: int, workers: int
) -> Iterator[np.ndarray]:
    """`make(start, stop)` for all of `total` entries, CHUNK at a time, in order."""
    starts = range(0, total, CHUNK)
    with ProcessPoolExecutor(workers) as pool:
        jobs = [pool.submit(make, start, min(start + CHUNK, total)) for start in starts]
        for job in jobs:
            yield job.result()
