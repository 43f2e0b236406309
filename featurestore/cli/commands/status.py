"""fs status."""

from __future__ import annotations

from collections.abc import Iterator

import click

from featurestore.cli.numbers import age
from featurestore.cli.output import Output, jsonable, repo_command
from featurestore.consistency.waiting_rows import in_words
from featurestore.errors import AuthError
from featurestore.following.lag import Lag
from featurestore.ledger.serving import servers_of
from featurestore.maintenance.status import ViewStatus, status, without_views
from featurestore.plan.history import SHOWN_HASH
from featurestore.store import FeatureStore
from featurestore.types.times import to_rfc3339


@click.command("status")
@click.option("--servers", is_flag=True, help="What each feature server serves, and whether it has the code for it.")
@repo_command
def command(store: FeatureStore, output: Output, servers: bool) -> None:
    """Show each view's freshness, watermark, rows, and how its last run went."""
    if servers:
        _show_servers(store, output)
        return
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
            age(view.age_us),
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
        for line in _expected(view):
            output.say(line, style="yellow")
        if view.no_statistics:
            output.say(view.no_statistics, style="yellow")
        if view.held:
            held = "1 row is" if view.held == 1 else f"{view.held:,} rows are"
            output.say(f"{view.view}: {held} set aside: `fs quarantine list {view.view}` shows why.", style="yellow")
        if view.waiting:
            output.say(in_words(view.view, view.waiting), style="yellow")
    _warn(output, found)
    for line in _served(store):
        output.say(line)


def _expected(view: ViewStatus) -> Iterator[str]:
    """Yield what of a view's rows is not as expected: what is blocked, and what is committed all the same."""
    found = view.unexpected
    if found.blocked is not None:
        run, unmet = found.blocked.run_id, "; ".join(found.blocked.unmet)
        yield (
            f"{view.view}: run {run} was blocked, and nothing of it is committed: {unmet}. `fs log` shows it. If its "
            f"rows are right: `fs accept {run} --reason TEXT`."
        )
    if found.unmet:
        how = f", accepted all the same: {found.accepted}" if found.accepted else ". `fs log` shows it."
        yield f"{view.view}: its last run is not as expected: {'; '.join(found.unmet)}{how}"


def _warn(output: Output, found: list[ViewStatus]) -> None:
    """Print what is wrong with views, clocks and stores."""
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


def _show_servers(store: FeatureStore, output: Output) -> None:
    snapshot = store.workspace.snapshot()
    found = servers_of(store.workspace.registry, store.project)
    judged = [(server, server.behind(snapshot), server.other_code(snapshot)) for server in found]
    output.emit(
        {
            "project": store.project,
            "revision": snapshot.revision,
            "hash": snapshot.chain.head,
            "servers": [{**jsonable(each), "behind": behind, "other_code": other} for each, behind, other in judged],
        }
    )
    rows = [
        (
            each.instance,
            each.process,
            f"{each.revision} ({each.hash[:SHOWN_HASH]}){', behind' if behind else ''}",
            ", ".join(other),
            each.version,
            "" if each.seen_at is None else each.seen_at.isoformat(sep=" ", timespec="seconds")[:19],
        )
        for each, behind, other in judged
    ]
    output.table(("server", "process", "serves revision", "lacks the code of", "version", "seen (UTC)"), rows)


def _served(store: FeatureStore) -> Iterator[str]:
    """Yield by how many servers each revision is served, and which of them are not as they should be."""
    snapshot = store.workspace.snapshot()
    try:
        found = servers_of(store.workspace.registry, store.project)
    except AuthError:
        return  # an earlier version serves the registry, and knows of no such entries
    for number, head in sorted({(server.revision, server.hash) for server in found}, reverse=True):
        count = len({server.instance for server in found if server.hash == head})
        servers = "1 server" if count == 1 else f"{count} servers"
        behind = "" if head == snapshot.chain.head else f", behind revision {snapshot.revision}"
        yield f"Revision {number} is served by {servers}{behind}."
    for server in found:
        if other := server.other_code(snapshot):
            yield f"{server.instance} lacks the applied code of {', '.join(other)}: it answers code_mismatch for it."


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
