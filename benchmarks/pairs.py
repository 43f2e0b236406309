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
    """What both sides of every pair came to: seconds, requests a second, or whatever was measured."""

    values: tuple[tuple[float, float], ...]
    """(ours, floor) of each pair."""

    @property
    def ours(self) -> float:
        """Our median."""
        return median(ours for ours, _ in self.values)

    @property
    def floor(self) -> float:
        """The floor's median."""
        return median(floor for _, floor in self.values)

    @property
    def ratios(self) -> list[float]:
        """Each pair's own ratio ours / floor; their median is not the ratio of the medians."""
        return [ours / floor for ours, floor in self.values]

    @property
    def differences(self) -> list[float]:
        """Each pair's own difference ours - floor."""
        return [ours - floor for ours, floor in self.values]


def measure(ours: Callable[[], float], floor: Callable[[], float], *, count: int) -> Pairs:
    """Take both numbers ``count`` times in turn and change who goes first every time.

    Several pairs are taken after one of each for warmth; a single pair says nothing anyway.
    """
    if count > 1:
        ours()
        floor()
    values: list[tuple[float, float]] = []
    for number in range(count):
        if number % 2:
            floor_value, ours_value = floor(), ours()
        else:
            ours_value, floor_value = ours(), floor()
        values.append((ours_value, floor_value))
    return Pairs(tuple(values))


def timed(run: Callable[..., object], *arguments: Any, calls: int = 1) -> Callable[[], float]:
    """Return what measures how many seconds one call of ``run(*arguments)`` takes, on average of ``calls``."""

    def seconds() -> float:
        gc.collect()
        start = time.perf_counter()
        for _ in range(calls):
            run(*arguments)
        return (time.perf_counter() - start) / calls

    return seconds


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
