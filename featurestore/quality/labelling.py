"""Labels beside served rows: who was asked for and when is in the log, what became known since in the offline store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.definitions import FeatureService, Label
from featurestore.definitions.base import twins
from featurestore.errors import InputError
from featurestore.quality.entities import entity_columns
from featurestore.registered.snapshot import Snapshot
from featurestore.request.features import resolve
from featurestore.served.keep import read_served
from featurestore.served.shape import AT, KEY, REQUEST
from featurestore.training.frames import TIME, OwnColumns, check_frame
from featurestore.training.joins import JoinedLabel, JoinedRows, pin
from featurestore.training.labels import LabelFacts, LabelRead, OldEnough, listed_labels, read_label
from featurestore.types.times import duration_text
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LABEL = "label."
"""What the names of labels begin with beside served rows."""


@dataclass(frozen=True)
class LabelledRows:
    """What was served, with what became known since."""

    rows: pa.Table
    """The columns of `FeatureStore.read_served`, then ``label.*`` by name."""
    labels: tuple[LabelFacts, ...]
    """The labels, and how many rows are left out because they are not known yet."""
    left_out: int
    """Rows that are left out because one of their labels is not."""

    def notes(self) -> Iterator[str]:
        """Yield why rows are left out."""
        for each in self.labels:
            horizon = f"of the {duration_text(each.horizon_us)} after the row for {each.name!r}"
            if each.not_matured:
                yield f"{horizon} {each.not_matured:,} end after now: these rows are left out"
            if each.not_committed:
                yield f"{horizon} {each.not_committed:,} are not all committed: these rows are left out"

    def to_pandas(self) -> pd.DataFrame:
        """Return the rows as a frame."""
        return self.rows.to_pandas()


def label_served(
    workspace: Workspace, service: str, labels: Label | Sequence[Label], start_us: int, end_us: int
) -> LabelledRows:
    """Return what was served in [start, end), labelled. See `FeatureStore.label_served`."""
    import pyarrow as pa

    rows = read_served(workspace, service, start_us, end_us)
    snapshot = workspace.snapshot()
    wanted = [read_label(snapshot, label) for label in listed_labels(labels)]
    names = [label.name for label in wanted]
    if not names:
        raise InputError(
            "No label was given.", hint='Pass one or more: Label("view:feature", horizon=timedelta(hours=6)).'
        )
    if problems := twins(names):
        raise InputError(f"Of these labels {problems[0]}.", hint='Give each a name of its own: Label(..., name="...").')
    old_enough, found = labelled(workspace, snapshot, service, rows, wanted)
    kept = rows.take(pa.array(old_enough.places))
    for name, column in found.items():
        kept = kept.append_column(LABEL + name, column)
    return LabelledRows(kept, old_enough.facts, old_enough.left_out)


def labelled(
    workspace: Workspace, snapshot: Snapshot, service: str, rows: pa.Table, labels: Sequence[LabelRead]
) -> tuple[OldEnough, Mapping[str, pa.Array]]:
    """Return which served rows have every label, and these rows' labels by name.

    Raises InputError where the log does not say for whom a label is, NotFoundError, SettingsError.
    """
    import pyarrow as pa

    own = OwnColumns("arrow", pa.table({**_keys(workspace, snapshot, service, rows, labels), TIME: rows.column(AT)}))
    joins, offline, now_us = workspace.engine.joins, workspace.offline, workspace.clock()
    frame = check_frame(own, labels[0].request, TIME)
    old_enough = OldEnough.of(frame, labels, workspace.ledger, now_us)
    kept = old_enough.rows_of(frame).own
    found = {}
    for label, facts in zip(labels, old_enough.facts, strict=True):
        pins = tuple(pin(read, None, offline.current(read.registered.table)) for read in label.request.reads)
        beside = JoinedRows(joins, offline, (), label.request, label.frame(kept, TIME), pins)
        found[label.name] = JoinedLabel(label, beside, facts).column
    return old_enough, found


def _keys(
    workspace: Workspace, snapshot: Snapshot, service: str, rows: pa.Table, labels: Sequence[LabelRead]
) -> dict[str, pa.Array]:
    """Return the columns by which labels are joined: join keys of the service, or request data."""
    request = resolve(snapshot, snapshot.get(FeatureService, service), full_feature_names=True)
    entities = entity_columns(workspace, request, rows, also=[label.request for label in labels])
    found = {}
    for label in labels:
        for name in label.request.key_types:
            if KEY + name in rows.column_names and name in entities:
                found[name] = entities[name]
            elif REQUEST + name in rows.column_names:
                found[name] = rows.column(REQUEST + name).combine_chunks()
            else:
                raise InputError(
                    f"The label {label.label.reference} is of {name!r}, which is neither a join key of {service!r} nor "
                    "request data that its log keeps.",
                    hint="Read the label by a column that there is: view.with_join_keys({...}); or let requests bring "
                    "it, by a RequestSource.",
                    column=name,
                )
    return found
