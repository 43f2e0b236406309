"""fs gc."""

from __future__ import annotations

from typing import Any

import click

from featurestore.cli.exits import EXIT_FAILED
from featurestore.cli.output import Output, repo_command
from featurestore.maintenance.gc import collect_garbage
from featurestore.store import FeatureStore


@click.command("gc")
@click.option("--dry-run", is_flag=True, help="Show what would go; remove nothing.")
@repo_command
def command(store: FeatureStore, output: Output, dry_run: bool) -> Any:
    """Remove old generations, data of deleted views, expired records, and leftovers of killed runs.

    Removes only what this registry remembers giving up. What a saved training set pins stays. What bears another
    identity, or never was this registry's, stays and is listed. An old generation stays for three times server.refresh,
    and at least 30 seconds, after the apply that superseded it: servers that have not noticed that apply still read it.
    Entries of the registry's journal stay as long as the settings under journal say, the log of what was served as
    long as its service says; many small files of that are merged. Exits with 1 when a log could not be cleaned.
    """
    garbage = collect_garbage(store.workspace, dry_run=dry_run)
    document = {
        "tables": [str(found) for found in garbage.tables],
        "kept": [{"what": kept.what, "why": kept.why} for kept in garbage.kept],
        "online_prefixes": [prefix.decode() for prefix in garbage.online_prefixes],
        "pushed_rows": {str(found): rows for found, rows in garbage.pushed.items()},
        "files": garbage.files,
        "records": garbage.records,
        "journal_entries": garbage.journal,
        "served_files": garbage.served.removed,
        "served_problems": list(garbage.served.problems),
        "quarantines": [
            {"table": str(each.table), "files": each.files, "held": each.held, "is_gone": each.is_gone}
            for each in garbage.quarantines
        ],
        "dry_run": dry_run,
    }
    output.emit(document)
    for found in garbage.tables:
        pushed = f", with {garbage.pushed[found]:,} rows that were pushed" if found in garbage.pushed else ""
        output.say(f"offline table {found} {'would be removed' if dry_run else 'removed'}{pushed}")
    if garbage.journal:
        output.say(f"{garbage.journal:,} old journal entries {'would be removed' if dry_run else 'removed'}.")
    if garbage.served.removed:
        removed = f"{garbage.served.removed:,} old files of served logs"
        output.say(f"{removed} {'would be removed' if dry_run else 'removed'}.")
    for each in garbage.quarantines:
        held = "" if not each.is_gone else f" with {'its' if each.held is None else f'{each.held:,}'} held rows"
        removed = "would be removed" if dry_run else "removed"
        output.say(f"{each.files:,} files of the quarantine of {each.table}{held} {removed}.")
    for kept in garbage.kept:
        output.say(f"{kept.what} kept: {kept.why}")
    if dry_run:
        output.say("Leftover files and online keys are counted when they are removed.")
    else:
        output.say(f"{garbage.files:,} files and {garbage.records:,} online keys removed.")
    for problem in garbage.served.problems:
        output.say(problem, style="red")
    return EXIT_FAILED if garbage.served.problems else 0
