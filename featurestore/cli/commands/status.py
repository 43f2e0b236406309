"""fs status."""

from __future__ import annotations

import click

from featurestore.cli.output import Output, repo_command
from featurestore.consistency.waiting_rows import in_words
from featurestore.following.lag import Lag
from featurestore.maintenance.status import status, without_views
from featurestore.store import FeatureStore
from featurestore.types.times import to_rfc3339


@click.command("status")
@repo_command
def command(store: FeatureStore, output: Output) -> None:
    """Show each view's freshness, watermark, rows, and how its last run went."""
    found = status(store.workspace)
    output.emit(found)
    if output.as_json:
        return
    if not found:
        for line in without_views(store.workspace):
            output.say(line)
        return
    heads = ("view", "newest event", "age", "committed until", "entities", "versions", "online", "last run")
    rows = [
        (
            view.view,
            _instant(view.greatest_event_us),
            _age(view.age_us),
            _instant(view.committed_until_us),
            "" if view.entities is None else f"{view.entities:,}",
            f"{view.offline_rows:,}",
            f"{view.online_rows:,}" if view.online else "-",
            view.last_run,
        )
        for view in found
    ]
    output.table(heads, rows, right=("age", "entities", "versions", "online"))
    for view in found:
        if view.windows is not None and all(mismatch.heals for mismatch in view.mismatches):  # else nobody knows
            output.say(_windows(view.view, view.windows))
        command = f"fs materialize --republish --view {view.view}"
        if view.not_found:
            names = ", ".join(view.not_found)
            output.say(f"{view.view}: its records do not hold {names} yet: run `{command}`.", style="yellow")
        elif view.pushes_wait:
            told = f"{view.view}: its records were made for other windows, so events that are pushed come online with"
            output.say(f"{told} the next run, or with `{command}`.", style="yellow")
        if view.waiting:
            output.say(in_words(view.view, view.waiting), style="yellow")
    for mismatch in (each for view in found for each in view.mismatches):
        output.say(f"{mismatch.message} {mismatch.hint}", style="yellow")
    for unreadable in filter(None, (view.unreadable for view in found)):
        output.say(unreadable, style="yellow")
    for lack in (each for view in found for each in view.lacks):
        output.say(lack, style="yellow")
    for told in filter(None, (found[0].evicted, found[0].room)):
        output.say(told, style="yellow")
    for told in dict.fromkeys(each for view in found for each in view.clocks):
        output.say(f"{told} Run `fs doctor`.")


def _instant(instant_us: int | None) -> str:
    return "never" if instant_us is None else to_rfc3339(instant_us)[:19].replace("T", " ")


def _windows(view: str, lag: Lag) -> str:
    """Return how far the windows of a view are."""
    if lag.version is None:
        of = f" of {lag.events:,} events" if lag.events else ""
        return f"{view}: no window is online. The next `fs materialize` makes the records{of}."
    events = "1 event" if lag.events == 1 else f"{lag.events:,} events"
    waiting = f"{events} of its log not online yet, the first since {_instant(lag.since_us)}"
    state = waiting if lag.events else "every event of its log is online"
    return f"{view}: windows are covered until {_instant(lag.covered_us)} (version {lag.version}); {state}."


_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def _age(age_us: int | None) -> str:
    if age_us is None:
        return ""
    seconds = age_us // 1_000_000
    length, unit = next((found for found in _UNITS if seconds >= found[0]), _UNITS[-1])
    return f"{seconds // length} {unit}"
