"""fs online."""

from __future__ import annotations

import math
from typing import Any

import click

from featurestore.cli.entities import declared_types, entity_option, entity_rows
from featurestore.cli.features import features_option, wanted_features
from featurestore.cli.output import Output, repo_command, shown
from featurestore.online.interface import UNTOUCHED
from featurestore.statuses import Status
from featurestore.store import FeatureStore


@click.command("online")
@features_option
@click.option("--service", help="A feature service, in place of --features.")
@entity_option
@click.option("--full-feature-names", is_flag=True, help="Name columns view__feature.")
@repo_command
def command(
    store: FeatureStore,
    output: Output,
    features: tuple[str, ...],
    service: str | None,
    entities: tuple[str, ...],
    full_feature_names: bool,
) -> None:
    """Read features from the online store.

    --entity carrier=UA --entity carrier=AA asks for two rows; different keys make one row together, request data
    included.
    """
    wanted = wanted_features(features, service)
    rows = entity_rows(entities, declared_types(store))
    answer = store.get_online_features(wanted, rows, full_feature_names=full_feature_names)
    values, statuses = answer.to_dict(), answer.statuses
    named = {name: list(map(_status_in_json, values[name], column)) for name, column in statuses.items()}
    output.emit({"entities": rows, "features": values, "statuses": named})
    for row in range(len(next(iter(rows.values())))):
        output.say(", ".join(f"{key}={column[row]}" for key, column in rows.items()), style="bold")
        cells = [(name, shown(values[name][row]), status[row].name) for name, status in statuses.items()]
        output.table(("feature", "value", "status"), cells)
    if store.workspace.online.is_untouched():
        output.note(
            f"The online store is {store.settings.online_store.url}, and {UNTOUCHED}. Run `fs materialize`, or check "
            "`online_store` in the settings and FS_ONLINE_STORE."
        )


def _status_in_json(value: Any, status: Status) -> str:
    """Return a status as the server reports it: a value that JSON has no number for is null there."""
    is_null = status is Status.PRESENT and isinstance(value, float) and not math.isfinite(value)
    return (Status.NULL_VALUE if is_null else status).value
