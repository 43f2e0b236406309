"""fs list."""

from __future__ import annotations

import click

from featurestore.cli.output import Output, described, repo_command
from featurestore.definitions import Definition, Entity, FeatureService, FeatureView, OnDemandFeatureView
from featurestore.store import FeatureStore


@click.command("list")
@click.argument("kind", required=False)
@repo_command
def command(store: FeatureStore, output: Output, kind: str | None) -> None:
    """List what is registered, or one KIND of it: entities, sources, feature-views, feature-services, …"""
    found = store.list(kind)
    rows = [
        (each.kind, each.name, _about(each), each.owner, described(each.description, each.deprecated)) for each in found
    ]
    names = ("kind", "name", "about", "owner", "description")
    output.emit([dict(zip(names, row, strict=True)) for row in rows])
    if rows:
        output.table(names, rows)
    else:
        output.say("Nothing is registered yet: run `fs apply`.")


def _about(found: Definition) -> str:
    if isinstance(found, Entity):
        return ", ".join(f"{key}: {kind}" for key, kind in found.join_keys.items())
    if isinstance(found, FeatureView | OnDemandFeatureView):
        return ", ".join(field.name for field in found.features)
    if isinstance(found, FeatureService):
        return f"{sum(len(read.features) for read in found.features)} features of {len(found.features)} views"
    return str(getattr(found, "path", ""))
