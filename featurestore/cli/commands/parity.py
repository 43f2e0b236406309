"""fs parity."""

from __future__ import annotations

from pathlib import Path

import click

from featurestore.cli.exits import EXIT_PENDING
from featurestore.cli.instants import Moment, instant
from featurestore.cli.output import Output, repo_command
from featurestore.errors import NotFoundError
from featurestore.quality.parity import HEADS, Parity
from featurestore.store import FeatureStore
from featurestore.training.outputs import check_output, write_rows, write_text
from featurestore.types.times import to_datetime, to_short_rfc3339


@click.command("parity")
@click.argument("service")
@click.option("--since", callback=instant, default="-1d", show_default=True, metavar="INSTANT", help="First instant.")
@click.option("--until", callback=instant, metavar="INSTANT", help="Rows before it; default: now.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Parquet file for the differences.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Page to write, which stands alone.")
@click.option(
    "--check", is_flag=True, help="Exit with 3 where a difference is unexplained, with 1 where there is nothing."
)
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    service: str,
    since: Moment | None,
    until: Moment | None,
    out: Path | None,
    html: Path | None,
    check: bool,
) -> None:
    """Compare what was served with what should have been, and say why it differs.

    As then: with what was committed and online when it was served. As now: with what is known today, late rows and
    corrections included. The service keeps a log: FeatureService(..., log=ServedLog(...)).
    """
    if out is not None:
        check_output(store.workspace, out, what="the differences are")
    clock = store.workspace.clock
    start, end = (None if given is None else to_datetime(given(clock)) for given in (since, until))
    found = store.parity(service, start, end)
    if out is not None:  # first: an output that takes nothing is no reason to lose it
        write_rows(found.differences, out)
    output.emit(found.to_dict())
    output.say(found.title())
    output.table(HEADS, list(found.cells()))
    for note in found.notes():
        output.say(note)
    if out is not None:
        output.say(f"{_written(found)} written to {out}.")
    if html is not None:
        write_text(found.to_html(), html)
        output.say(f"A page is written to {html}.")
    if check and found.is_empty:
        first, last = (to_short_rfc3339(at_us) for at_us in (found.start_us, found.end_us))
        raise NotFoundError(
            f"Nothing was served for {service!r} from {first} to {last} that can be compared.",
            hint="Give another span, or see `fs served list`: does the service keep a log, and does a server run?",
            name=service,
        )
    if check and (found.unexplained or found.not_explained):
        raise SystemExit(EXIT_PENDING)


def _written(found: Parity) -> str:
    written, differing = found.differences.num_rows, found.differing
    return f"{written:,} differences" if written == differing else f"{written:,} of {differing:,} differences"
