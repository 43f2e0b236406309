"""Alternating pairs: what the machine does meanwhile slows both sides of a pair alike."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Pairs:
    """Medians over pairs; times in seconds."""

    ours_s: float
    floor_s: float
    ratio: float
    """Median of the pairs' own ratios ours / floor, not the ratio of the medians."""
    least: float
    greatest: float
    """Ratio of the best and worst pair."""
    count: int


def measure(ours: Callable[[], object], floor: Callable[[], object], *, count: int = 7) -> Pairs:
    """Run both ``count`` times in turn, after one untimed run of each, and change who goes first every time."""
    ours()
    floor()
    times: list[tuple[float, float]] = []
    for number in range(count):
        if number % 2:
            floor_s, ours_s = timed(floor), timed(ours)
        else:
            ours_s, floor_s = timed(ours), timed(floor)
        times.append((ours_s, floor_s))
    ratios = [ours_s / floor_s for ours_s, floor_s in times]
    return Pairs(
        median(ours_s for ours_s, _ in times),
        median(floor_s for _, floor_s in times),
        median(ratios),
        min(ratios),
        max(ratios),
        count,
    )


def timed(run: Callable[[], object]) -> float:
    """Return how many seconds a call takes."""
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_mib(run: Callable[..., object], *arguments: Any) -> float:
    """Return the greatest resident size in MiB of a new process that calls ``run(*arguments)`` once."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(sender, run, arguments))
    process.start()
    sender.close()
    try:
        peak: float = receiver.recv()
    except EOFError:
        raise RuntimeError(f"{run.__name__} failed in its own process") from None
    finally:
        process.join()
    return peak


def _peak(sender: Any, run: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    run(*arguments)
    status = Path("/proc/self/status")
    if status.exists():  # the counter of getrusage starts at what the parent process held
        sender.send(int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024)
    else:
        unit = 2**20 if sys.platform == "darwin" else 2**10
        sender.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
