"""fs list."""

from __future__ import annotations

import click

from featurestore.cli.numbers import age
from featurestore.cli.output import Output, described, repo_command
from featurestore.definitions import Definition, Entity, FeatureService, FeatureView, OnDemandFeatureView
from featurestore.errors import NotFoundError, did_you_mean
from featurestore.maintenance.features import list_features
from featurestore.registered.records import KINDS
from featurestore.store import FeatureStore


@click.command("list")
@click.argument("kind", required=False)
@repo_command
def command(store: FeatureStore, output: Output, kind: str | None) -> None:
    """List what is registered, or one KIND of it: features, feature-views, feature-services, entities, sources, …"""
    if kind is not None and kind.lower() in ("feature", "features"):
        _list_features(store, output)
        return
    try:
        found = store.list(kind)
    except NotFoundError as error:
        raise NotFoundError(error.message, hint=did_you_mean(kind or "", [*KINDS, "features"])) from None
    rows = [
        (each.kind, each.name, _about(each), each.owner, described(each.description, each.deprecated)) for each in found
    ]
    names = ("kind", "name", "about", "owner", "description")
    output.emit([dict(zip(names, row, strict=True)) for row in rows])
    if rows:
        output.table(names, rows)
    else:
        output.say("Nothing is registered yet: run `fs apply`.")


def _list_features(store: FeatureStore, output: Output) -> None:
    found = list_features(store.workspace)
    output.emit(found)
    if not found:
        output.say("No feature is registered yet: run `fs apply`.")
        return
    now_us = store.workspace.clock()
    rows = [
        (
            each.name,
            each.type,
            described(each.description, each.deprecated),
            each.owner,
            ", ".join(f"{key}={value}" for key, value in each.own_tags.items()),
            "" if each.null_share is None else f"{100 * each.null_share:.1f} %",
            "never" if each.newest_event_us is None else age(now_us - each.newest_event_us),
            "yes" if each.online else "no",
            ", ".join(each.services),
        )
        for each in found
    ]
    heads = ("feature", "type", "description", "owner", "tags", "nulls", "age", "online", "services")
    output.table(heads, rows, right=("nulls", "age"), droppable=("tags", "owner", "services"))


def _about(found: Definition) -> str:
    if isinstance(found, Entity):
        return ", ".join(f"{key}: {kind}" for key, kind in found.join_keys.items())
    if isinstance(found, FeatureView | OnDemandFeatureView):
        return ", ".join(field.name for field in found.features)
    if isinstance(found, FeatureService):
        return f"{sum(len(read.features) for read in found.features)} features of {len(found.features)} views"
    return str(getattr(found, "path", ""))
