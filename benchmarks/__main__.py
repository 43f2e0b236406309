"""``python -m benchmarks``: our speed beside floors that do the bare minimum with the same libraries, in one run."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import (
    catalog,
    checks,
    cluster,
    feast,
    growth,
    http,
    publish,
    push,
    reads,
    registry,
    report,
    served,
    startup,
    statistics,
    training_set,
    windows,
    windows_hot,
    windows_training,
)
from benchmarks.context import Context
from benchmarks.load import LoadGeneratorMissingError
from tests.support.redis_server import RedisServer

BENCHMARKS: dict[str, Callable[[Context], Iterator[report.Section]]] = {
    "startup": startup.run,
    "training-set": training_set.run,
    "publish": publish.run,
    "push": push.run,
    "growth": growth.run,
    "growth-runs": growth.run_daily,
    "growth-events": growth.run_events,
    "reads": reads.run,
    "cluster": cluster.run,
    "http": http.run,
    "served": served.run,
    "parity": served.run_parity,
    "monitor": served.run_monitor,
    "registry": registry.run,
    "catalog": catalog.run,
    "statistics": statistics.run,
    "checks": checks.run,
    "windows": windows.run,
    "windows-hot": windows_hot.run,
    "training-set-10x": training_set.run_large,
    "windows-10x": windows_training.run_large,
    "feast": feast.run,
}
LARGE = ("training-set-10x", "windows-10x")
DEFAULT = tuple(name for name in BENCHMARKS if name not in ("growth-runs", "growth-events", *LARGE, "feast"))
RESULTS = Path(__file__).with_name("RESULTS.md")


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--pairs", type=click.IntRange(1), default=7, show_default=True, help="Pairs of each measurement.")
@click.option("--large", is_flag=True, help="Training sets of ten times the workload too: half an hour, 10 GB of disk.")
@click.option("--quick", is_flag=True, help="The least that runs all code; its numbers say nothing.")
@click.option("--markdown", is_flag=True, help=f"Write the tables into {RESULTS.name} too.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Another file for --markdown.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder that keeps the workload for the next run.")
def main(
    names: Sequence[str], pairs: int, large: bool, quick: bool, markdown: bool, results: Path, data: Path | None
) -> None:
    """Measure everything, or what is named, beside its floors."""
    chosen = names or (*DEFAULT, *(LARGE if large else ()))
    console, sections = Console(), []
    facts = report.machine_facts(pairs)
    console.print("\n".join(facts), highlight=False)
    command = "python -m benchmarks " + shlex.join(sys.argv[1:])
    before = results.read_text() if results.exists() else ""
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as made:
        folder = Path(made)
        kept = data or folder
        for name in chosen:
            place = folder / name
            place.mkdir()
            with RedisServer(place) as server:
                try:
                    for section in BENCHMARKS[name](Context(place, kept, pairs, quick, server.url)):
                        sections.append(section)
                        report.show(section, console)
                        if markdown:
                            results.write_text(report.markdown(sections, facts, command, before))
                except LoadGeneratorMissingError as error:
                    raise click.ClickException(str(error)) from None
    if markdown:
        console.print(f"Written to {results}.")


if __name__ == "__main__":
    main()
