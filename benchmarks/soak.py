"""``python -m benchmarks.soak``: ten minutes at 0.8 of the peak load, and whether memory and descriptors stay flat."""

from __future__ import annotations

import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from statistics import median

import click
import psutil
from rich.console import Console
from rich.progress import track

from benchmarks.http import PATH, write_bodies
from benchmarks.load import Load, LoadGeneratorMissingError, closed_loop, find_wrk, open_loop
from benchmarks.projects import make_project, newest_rows
from benchmarks.report import machine_facts
from benchmarks.workload import make
from tests.support.redis_server import RedisServer
from tests.support.serving import serving

RESULTS = Path(__file__).with_name("SOAK.md")
CONNECTIONS = 16
SLICE_SECONDS = 15.0
SETTLE_SECONDS = 0.5
"""Until the server has seen that the connections of a slice are closed."""
ONE_IN = 16
"""So many requests ask for one entity and the next for a hundred."""
GROWTH = 0.05
"""Memory is flat when its median in the last quarter is at most so much above that in the second."""
COLUMNS = ("after", "requests/s", "p50", "p99", "memory (USS)", "resident (RSS)", "descriptors", "threads")


@dataclass(frozen=True)
class Sample:
    """The server after one slice of load."""

    seconds: float
    load: Load
    uss_mib: float
    rss_mib: float
    descriptors: int
    threads: int

    @property
    def cells(self) -> list[str]:
        """Texts for `COLUMNS`."""
        load = self.load
        return [
            f"{self.seconds:.0f} s",
            f"{load.requests_per_second:,.0f}",
            f"{load.p50_ms:.2f} ms",
            f"{load.p99_ms:.2f} ms",
            f"{self.uss_mib:.1f} MiB",
            f"{self.rss_mib:.1f} MiB",
            str(self.descriptors),
            str(self.threads),
        ]


def soak(url: str, process: psutil.Process, bodies: Sequence[bytes], *, rate: float, seconds: float) -> list[Sample]:
    """Load a server for so long and look at it after every slice; an answer that is no 200 ends it."""
    started, samples = time.monotonic(), []
    slices = max(4, round(seconds / SLICE_SECONDS))
    for _ in track(range(slices), f"{rate:,.0f} requests/s", console=Console(stderr=True)):
        load = open_loop(url, bodies, rate=rate, connections=CONNECTIONS, seconds=seconds / slices)
        time.sleep(SETTLE_SECONDS)
        memory = process.memory_full_info()
        samples.append(
            Sample(
                time.monotonic() - started,
                load,
                memory.uss / 2**20,
                memory.rss / 2**20,
                process.num_fds(),
                process.num_threads(),
            )
        )
    return samples


def verdict(samples: Sequence[Sample]) -> str:
    """Say whether it stayed flat, after a quarter of the time to warm up."""
    quarter = len(samples) // 4
    early, late = samples[quarter : 2 * quarter], samples[-quarter:]
    before, after = (median(sample.uss_mib for sample in part) for part in (early, late))
    opened = max(sample.descriptors for sample in late) - max(sample.descriptors for sample in early)
    is_flat = after <= before * (1 + GROWTH) and opened <= 0
    what = f"memory {before:.1f} → {after:.1f} MiB, descriptors {opened:+d} between the second and the last quarter"
    return f"{'Flat' if is_flat else 'NOT FLAT'}: {what}."


@click.command()
@click.option("--seconds", type=click.FloatRange(4), default=600.0, show_default=True, help="How long.")
@click.option("--share", type=click.FloatRange(0.01, 1), default=0.8, show_default=True, help="Of the peak load.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="What is written.")
def main(seconds: float, share: float, results: Path) -> None:
    """Soak one worker on Redis: measure its peak with wrk, then send a share of that, whether or not it keeps up."""
    try:
        find_wrk()
    except LoadGeneratorMissingError as error:
        raise click.ClickException(str(error)) from None
    console = Console(width=200, soft_wrap=True, highlight=False)
    facts = machine_facts(1)[1:]
    with tempfile.TemporaryDirectory(prefix="soak-") as made, RedisServer(Path(made)) as redis:
        folder = Path(made)
        views = newest_rows(make(folder, 0.1), folder)
        root = make_project(folder / "repo", views, online_url=redis.url)
        single, hundred = (write_bodies(folder, views, count).read_bytes().splitlines() for count in (1, 100))
        groups = [[*single[start : start + ONE_IN], hundred[start]] for start in range(0, len(single), ONE_IN)]
        mixed = folder / "mixed"
        mixed.write_bytes(b"\n".join(chain.from_iterable(groups)) + b"\n")
        with serving(root, "--workers", "1") as server:
            peak = closed_loop(server.url + PATH, mixed, connections=CONNECTIONS, seconds=min(10, seconds / 4))
            rate = peak.requests_per_second * share
            process = psutil.Process(server.process.pid)
            lines = mixed.read_bytes().splitlines()
            samples = soak(server.url + PATH, process, lines, rate=rate, seconds=seconds)
    result = verdict(samples)
    results.write_text(_page(peak, share, samples, result, facts))
    console.print(f"{result}\nWritten to {results}.")
    sys.exit(0 if result.startswith("Flat") else 1)


def _page(peak: Load, share: float, samples: Sequence[Sample], result: str, facts: Sequence[str]) -> str:
    command = "python -m benchmarks.soak " + shlex.join(sys.argv[1:])
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---:|" * len(COLUMNS)]
    lines += ["| " + " | ".join(sample.cells) + " |" for sample in samples]
    about = (
        f"One worker of `fs serve` on Redis, {CONNECTIONS} connections, {ONE_IN} requests for one entity and then one "
        f"for a hundred, 30 features of two views. wrk's peak was {peak.requests_per_second:,.0f} requests/s; the load "
        f"is {share:g} of it, sent at random instants fixed beforehand, and latency counts from those. Every answer "
        "was a 200."
    )
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    parts = [
        "# Soak",
        f"Written by `{command.strip()}`: do not edit.",
        "\n".join(f"- {fact}" for fact in [when, *facts]),
    ]
    return "\n\n".join([*parts, about, f"**{result}**", "\n".join(lines)]) + "\n"


if __name__ == "__main__":
    main()
