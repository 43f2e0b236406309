"""fs monitor."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import click

from featurestore.cli.exits import EXIT_FAILED, EXIT_PENDING
from featurestore.cli.instants import Moment, duration, instant
from featurestore.cli.output import Output, repo_command
from featurestore.definitions import Monitor
from featurestore.errors import FeatureStoreError, InputError
from featurestore.quality.acting import act, checked, send, told
from featurestore.quality.report import HEADS, MonitorResult, metrics, page
from featurestore.store import FeatureStore
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

    All monitors of the project, or those that are named. Exit codes: 0 healthy or not judged, 3 alarm, 1 could not
    tell.
    """
    at = None if until is None else to_datetime(until(store.workspace.clock))
    if webhook:
        checked(store.settings.monitor)
    results, failed = list[MonitorResult](), False
    for name in names or _all(store):
        try:
            results.append(store.monitor(name, at))
        except FeatureStoreError as error:
            if len(names) == 1:
                raise
            failed = True
            output.note(f"{name} could not be run: {error}")
    for path, written in ((html, page), (text, metrics)):
        if path is not None:
            _write(path, written(results))
    output.emit([result.to_dict() for result in results])
    if not results and not failed:
        output.say("Nothing is monitored: declare Monitor(...) in the feature repo, and run `fs apply`.")
    for result in results:
        _show(output, result)
    if html is not None:
        output.say(f"A page is written to {html}.")
    for result in results if webhook or on_alarm else ():
        failed |= not _follow(store, output, result, on_alarm, cooldown, timeout, webhook=webhook)
    if any(result.state == "alarm" for result in results):
        raise SystemExit(EXIT_PENDING)
    if failed:
        raise SystemExit(EXIT_FAILED)


def _follow(
    store: FeatureStore,
    output: Output,
    result: MonitorResult,
    on_alarm: str | None,
    cooldown: timedelta,
    timeout: timedelta,
    *,
    webhook: bool,
) -> bool:
    """Do what follows an alarm; tell whether the webhook took what it should."""
    took = True
    if webhook:
        try:
            sent = send(store.workspace, result)
        except FeatureStoreError as error:
            took = False
            output.note(str(error))
        else:
            if sent:
                output.say(f"{result.document.monitor}: alarms {', '.join(sent)} are sent.")
    if on_alarm:
        acted = act(store.workspace, result, on_alarm, cooldown=cooldown, timeout=timeout)
        if acted is not None:
            output.note(told(acted))
    return took


def _all(store: FeatureStore) -> Sequence[str]:
    return [each.name for each in store.workspace.snapshot().list(Monitor.kind)]


def _write(path: Path, text: str) -> None:
    """Write a file in one step: what reads it meanwhile sees the whole old one or the whole new one."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path} cannot be written: {reason}.", hint="Name another file.", path=str(path)) from None


def _show(output: Output, result: MonitorResult) -> None:
    output.say(result.title())
    rows = list(result.cells())
    if rows:
        output.table(HEADS, rows)
    for note in result.notes():
        output.say(note)
