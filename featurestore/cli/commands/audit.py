"""fs audit."""

from __future__ import annotations

import click

from featurestore.cli.numbers import WholeNumber
from featurestore.cli.output import Output, repo_command
from featurestore.store import FeatureStore
from featurestore.types.times import to_instant, to_rfc3339

_SHOWN_APART = ("action", "by", "token", "from")


@click.command("audit")
@click.option("-n", "--limit", type=WholeNumber(1, 10_000), default=50, show_default=True, help="At most so many.")
@click.option("--every-project", is_flag=True, help="What was done to no project in particular, such as its tokens.")
@repo_command
def command(store: FeatureStore, output: Output, limit: int, every_project: bool) -> None:
    """Show who changed what, when and from where, newest first: applies, policies, tokens, consumers, …

    The server of a registry writes it down; in a file or database that you open yourself nothing is written. Needs a
    token with the role admin.
    """
    found = store.workspace.registry.journal.newest("" if every_project else store.project, "audit", limit=limit)
    entries = [{"at": entry.written_at, **entry.document} for entry in found]
    output.emit([{**each, "at": to_rfc3339(to_instant(each["at"]))} for each in entries])
    if not entries:
        output.say("Nothing was written down.")
        return
    rows = [
        (f"{each['at']:%Y-%m-%d %H:%M:%S}", each["by"], each["from"], each["action"], _about(each)) for each in entries
    ]
    output.table(("when (UTC)", "who", "from", "what", "about"), rows)


def _about(entry: dict[str, object]) -> str:
    rest = {name: value for name, value in entry.items() if name not in ("at", *_SHOWN_APART)}
    return ", ".join(f"{name} {_text(value)}" for name, value in rest.items())


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items() if each and not name.endswith("_us"))
    return str(value)
