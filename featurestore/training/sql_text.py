"""The SQL of a point-in-time join, for people: one query that defines the rows of a training set."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.request.features import FeatureRequest
from featurestore.training.joins import PinnedRead
from featurestore.types.columns import CREATED, EVENT, SEQUENCE


def join_sql(request: FeatureRequest, pins: Sequence[PinnedRead], timestamp_column: str) -> str:
    """Return one SELECT over ``entity_df`` and the tables of the views that gives the joined features.

    It defines the result, not the work: the engine gets the same rows by other, faster queries.
    """
    outputs = []
    for output in request.outputs:
        if output.read is None:
            outputs.append(f"    -- {_quote(output.name)}: computed by on-demand view {output.alias}")
        else:
            source = f"{_quote(request.reads[output.read].name)}.{_quote(output.field.name)}"
            outputs.append(f"    {source} AS {_quote(output.name)}")
    columns = ["    entity_df.*", *outputs]
    commented = [line if line.lstrip().startswith("--") else f"{line}," for line in columns]
    last = max(place for place, line in enumerate(columns) if not line.lstrip().startswith("--"))
    commented[last] = columns[last]
    joins = [_lateral(pinned, timestamp_column) for pinned in pins]
    return "\n".join(["SELECT", *commented, "FROM entity_df", *joins])


def _lateral(pinned: PinnedRead, timestamp_column: str) -> str:
    view, read = pinned.read.view, pinned.read
    at = f"entity_df.{_quote(timestamp_column)}"
    conditions = [f"{_quote(key)} = entity_df.{_quote(column)}" for key, column in read.key_columns]
    conditions.append(f"{EVENT} <= {at}")
    if pinned.as_of == "available":
        conditions.append(f"coalesce({CREATED}, {EVENT}) <= {at}")
    if view.ttl_us is not None:
        conditions.append(f"{EVENT} >= {at} - INTERVAL '{view.ttl_us} microseconds'")
    features = ", ".join(_quote(name) for name in read.features)
    version = "never committed" if pinned.version is None else f"version {pinned.version.number}"
    version = "staged from its source" if pinned.staged else version
    where = "\n      AND ".join(conditions)
    return (
        f"LEFT JOIN LATERAL (\n"
        f"    SELECT {features}\n"
        f"    FROM {_quote(view.name)} -- {version}\n"
        f"    WHERE {where}\n"
        f"    ORDER BY {EVENT} DESC, coalesce({CREATED}, {EVENT}) DESC, {SEQUENCE} DESC\n"
        f"    LIMIT 1\n"
        f") {_quote(read.name)} ON true"
    )


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
