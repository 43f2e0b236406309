"""fs monitor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import click

from featurestore.cli.exits import EXIT_FAILED, EXIT_PENDING
from featurestore.cli.instants import Moment, duration, instant
from featurestore.cli.output import Output, repo_command, show_error
from featurestore.cli.shared import given
from featurestore.definitions import Monitor
from featurestore.errors import FeatureStoreError
from featurestore.quality.acting import act, told
from featurestore.quality.report import HEADS, MonitorResult, metrics, page
from featurestore.quality.telling import checked, send
from featurestore.store import FeatureStore
from featurestore.training.outputs import write_text
from featurestore.types.times import to_datetime


@click.command("monitor")
@click.argument("names", nargs=-1)
@click.option("--until", callback=instant, metavar="INSTANT", help="The end of the last window; default: now.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Page to write, which stands alone.")
@click.option("--metrics", "text", type=click.Path(path_type=Path, dir_okay=False), help="Prometheus file to write.")
@click.option("--on-alarm", metavar="COMMAND", help="Shell command to run, once for each alarm.")
@click.option("--cooldown", callback=duration, default="6h", show_default=True, help="From one --on-alarm to the next.")
@click.option("--timeout", callback=duration, default="1h", show_default=True, help="How long --on-alarm may take.")
@click.option("--webhook", is_flag=True, help="Send new alarms to the settings' webhook, signed.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    names: tuple[str, ...],
    until: Moment | None,
    html: Path | None,
    text: Path | None,
    on_alarm: str | None,
    cooldown: timedelta,
    timeout: timedelta,
    webhook: bool,
) -> None:
    """Compare what is served, or what runs bring, with its baseline.

    All monitors of the project, or those that are named. With --until before what was found last it only looks back:
    nothing is kept, and no alarm opens, ends or starts anything. Exit codes: 0 healthy or not judged, 3 alarm, 1 could
    not tell.
    """
    at = None if until is None else to_datetime(until(store.workspace.clock))
    if webhook:
        checked(store.settings.monitor)
    work = _Work(store, output)
    results = work.run(names or _all(store), at)
    # What cannot be written keeps no alarm from being told: each of these goes on, and says at the end what is missing.
    for path, written in ((html, page), (text, metrics)):
        if path is not None:
            work.write(path, partial(written, results))
    with output.surviving():
        output.emit([result.to_dict() for result in results])
        if not results and not work.failed:
            output.say("Nothing is monitored: declare Monitor(...) in the feature repo, and run `fs apply`.")
        for result in results:
            _show(output, result)
        if html in work.written:
            output.say(f"A page is written to {html}.")
    for result in results:
        if webhook:
            work.tell(result)
        if on_alarm:
            work.act(result, on_alarm, cooldown, timeout)
    if output.lost:
        work.note(f"What was found could not be printed: {output.lost}.")
    if any(result.state == "alarm" for result in results):
        raise SystemExit(EXIT_PENDING)
    if work.failed or output.lost:
        raise SystemExit(EXIT_FAILED)


class _Work:
    """Runs monitors, and does what follows; what fails is noted, and keeps nothing else from being done."""

    def __init__(self, store: FeatureStore, output: Output) -> None:
        self._store, self._output = store, output
        self.failed = False
        self.written: set[Path | None] = set()

    def note(self, text: str) -> None:
        """Note something on standard error, if that takes it."""
        with self._output.surviving():
            self._output.note(text)

    def run(self, names: Sequence[str], at: datetime | None) -> list[MonitorResult]:
        """Return what monitors found; raises the error of one that is run alone."""
        if len(names) == 1:
            return [self._store.monitor(names[0], at)]
        results = []
        for name in names:
            with self._noting(f"{name} could not be run"):
                results.append(self._store.monitor(name, at))
        return results

    def write(self, path: Path, made: Callable[[], str]) -> None:
        """Write a file."""
        with self._noting(f"{path} is not written"):
            write_text(made(), path)
            self.written.add(path)

    def tell(self, result: MonitorResult) -> None:
        """Send the alarms that were not sent yet."""
        sent: tuple[str, ...] = ()
        with self._noting("Alarms are not sent"):
            sent = send(self._store.workspace, result)
        with self._output.surviving():
            if sent:
                self._output.say(f"{result.document.monitor}: alarms {', '.join(sent)} are sent.")

    def act(self, result: MonitorResult, on_alarm: str, cooldown: timedelta, timeout: timedelta) -> None:
        """Run the command for alarms that none ran for."""
        with self._noting("The command is not run"):
            acted = act(self._store.workspace, result, on_alarm, cooldown=cooldown, timeout=timeout)
            if acted is not None:
                self.note(told(acted))

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.failed = True
            self.note(f"{what}: {error if isinstance(error, FeatureStoreError) else 'there is a defect.'}")
            if not isinstance(error, FeatureStoreError):
                with self._output.surviving():
                    show_error(error, as_json=False, debug=bool(given("debug")))


def _all(store: FeatureStore) -> Sequence[str]:
    return [each.name for each in store.workspace.snapshot().list(Monitor.kind)]


def _show(output: Output, result: MonitorResult) -> None:
    output.say(result.title())
    rows = list(result.cells())
    if rows:
        output.table(HEADS, rows)
    for note in result.notes():
        output.say(note)
