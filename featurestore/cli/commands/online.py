"""fs online."""

from __future__ import annotations

import math
from typing import Any

import click

from featurestore.cli.features import features_option, wanted_features
from featurestore.cli.numbers import PLAIN_NUMBER, number, whole_number
from featurestore.cli.output import Output, repo_command, shown
from featurestore.definitions import FeatureSelection
from featurestore.errors import ValueTypeError, did_you_mean
from featurestore.online.interface import UNTOUCHED
from featurestore.statuses import Status
from featurestore.store import FeatureStore
from featurestore.types import ValueType
from featurestore.types.values import from_json


@click.command("online")
@features_option
@click.option("--service", help="A feature service, in place of --features.")
@click.option("--entity", "entities", multiple=True, required=True, metavar="KEY=VALUE", help="Repeat for more.")
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
    rows = _entity_rows(entities, _declared_types(store))
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


def _declared_types(store: FeatureStore) -> dict[str, ValueType]:
    """Return the type of every column that a caller may bring: keys, renamed keys, request data."""
    snapshot = store.workspace.snapshot()
    types: dict[str, ValueType] = {}
    for registered in snapshot.views.values():
        types.update(registered.view.join_keys)
    reads = [read for service in snapshot.services.values() for read in service.features]
    for on_demand in snapshot.on_demand.values():
        types.update({field.name: field.type for field in on_demand.request_fields})
        reads += on_demand.selections
    for read in reads:
        if isinstance(read, FeatureSelection):
            types.update({column: read.view.join_keys[key] for key, column in read.join_key_columns.items()})
    return types


def _entity_rows(entities: tuple[str, ...], types: dict[str, ValueType]) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {}
    for pair in entities:
        name, separator, text = pair.partition("=")
        if not separator or not name:
            raise click.UsageError(f"--entity {pair!r} is not KEY=VALUE.")
        if types and name not in types:
            hint = did_you_mean(name, types)
            raise click.UsageError(f"--entity {pair!r}: {name!r} is no join key or request field. {hint}")
        rows.setdefault(name, []).append(_value(name, text, types.get(name)))
    lengths = {len(values) for values in rows.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{name}: {len(values)}" for name, values in rows.items())
        raise click.UsageError(f"Every --entity key needs equally many values, not {counts}.")
    return rows


_BOOLEANS = {"true": True, "false": False}


def _value(name: str, text: str, kind: ValueType | None) -> Any:
    """Return what a text on the command line means for a declared type; unknown names stay texts."""
    if kind is None or kind.name == "String":
        return text
    try:
        if kind.name in ("Int32", "Int64"):
            return from_json(kind, whole_number(text))
        if kind.name in ("Float32", "Float64"):
            return from_json(kind, number(text))
        if kind.name == "Decimal" and PLAIN_NUMBER.fullmatch(text) is None:
            raise ValueError
        return from_json(kind, _BOOLEANS.get(text, text) if kind.name == "Bool" else text)
    except (ValueError, ValueTypeError):
        raise click.UsageError(f"--entity {name}={text}: {text!r} is not a value of type {kind}.") from None
