"""The option ``--entity``, and what it means for the types that are declared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import click

from featurestore.cli.numbers import PLAIN_NUMBER, number, whole_number
from featurestore.cli.output import confirmed
from featurestore.definitions import FeatureSelection
from featurestore.errors import ValueTypeError, did_you_mean
from featurestore.store import FeatureStore
from featurestore.types import ValueType
from featurestore.types.values import from_json

entity_option = click.option(
    "--entity", "entities", multiple=True, required=True, metavar="KEY=VALUE", help="Repeat for more."
)


def declared_types(store: FeatureStore) -> dict[str, ValueType]:
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


def entity_rows(entities: tuple[str, ...], types: dict[str, ValueType]) -> dict[str, list[Any]]:
    """Return what ``--entity KEY=VALUE`` says, by key: one value for each time that the key is given."""
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


def confirm_parts(given: Iterable[str], parts: Sequence[str], rows: int, predictions: int = 0) -> None:
    """Ask before rows of all that have part of a key are forgotten; raises UsageError where nobody can be asked."""
    beside = f" and {predictions:,} of predictions" if predictions else ""
    question = (
        f"{', '.join(given)} is only part of the key of {', '.join(parts)}: {rows:,} rows{beside} of all that have it "
        "go. Forget them?"
    )
    confirmed(question, f"{question} There is no terminal to ask on: pass --yes, or the other keys.")


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
