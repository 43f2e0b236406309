"""Making training sets."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from featurestore_registry.interface import LedgerReader

from featurestore.consistency.belonging import compare_commit, compare_table, refuse
from featurestore.definitions import FeatureView, Label
from featurestore.engine.interface import AsOf, Log, Span, StageRequest
from featurestore.errors import InputError, IntervalError, OutputNameClashError
from featurestore.ledger.commits import Remembered
from featurestore.ledger.unread import read_unread
from featurestore.ledger.watermarks import read_watermark
from featurestore.registered.snapshot import Snapshot
from featurestore.request.deprecated import deprecations
from featurestore.request.features import FeatureRequest, FeaturesArgument, resolve
from featurestore.request.on_demand import OnDemandFunction
from featurestore.training.coverage import Gap, find_gap
from featurestore.training.frames import EntityFrame, check_frame, own_columns
from featurestore.training.joins import JoinedLabel, JoinedRows, PinnedRead, SpanRows, pin
from featurestore.training.labels import LabelRead, OldEnough, listed_labels, read_labels
from featurestore.training.training_set import TrainingSet
from featurestore.types.times import to_instant, to_rfc3339
from featurestore.workspace import Readers, Workspace

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def get_historical_features(
    workspace: Workspace,
    entity_df: Any = None,
    features: FeaturesArgument = None,
    *,
    timestamp_column: str = "event_timestamp",
    start: datetime | str | int | None = None,
    end: datetime | str | int | None = None,
    full_feature_names: bool = False,
    as_of: AsOf | None = None,
    direct: bool = False,
    labels: Label | Sequence[Label] = (),
    snapshot: Snapshot | None = None,
) -> TrainingSet:
    """Return the training set of an entity frame; see `FeatureStore.get_historical_features`.

    ``snapshot`` replaces the applied definitions, for direct sets.

    Raises NotFoundError, OutputNameClashError, EntityFrameError, EntityKeyError, CodeMismatchError, InputError.
    """
    if as_of not in (None, *get_args(AsOf)):
        raise InputError(f"as_of={as_of!r} is not a way to read time.", hint="Pass 'available', 'event', or nothing.")
    snapshot = workspace.snapshot() if snapshot is None else snapshot
    request = resolve(snapshot, features, full_feature_names=full_feature_names)
    wanted = read_labels(snapshot, listed_labels(labels), request, full_feature_names=full_feature_names)
    if entity_df is None:
        if wanted:
            raise InputError("Labels belong to the rows of an entity frame.", hint="Pass one, with its times.")
        return _span(workspace, request, timestamp_column, start, end, as_of, direct)
    if start is not None or end is not None:
        raise InputError("start and end go without an entity frame.", hint="Leave rows out of the entity frame.")
    frame = check_frame(own_columns(entity_df, workspace, snapshot), request, timestamp_column)
    return _joined(workspace, snapshot, request, frame, wanted, as_of, direct=direct)


def _joined(
    workspace: Workspace,
    snapshot: Snapshot,
    request: FeatureRequest,
    frame: EntityFrame,
    labels: Sequence[LabelRead],
    as_of: AsOf | None,
    *,
    direct: bool,
) -> TrainingSet:
    """Return the set of the rows of a frame that have every label."""
    now_us, folders = workspace.clock(), list[Path]()
    old_enough = OldEnough.of(frame, labels, None if direct else workspace.ledger, now_us)
    frame = old_enough.rows_of(frame)
    functions = [OnDemandFunction(snapshot, read.view) for read in request.on_demand]

    def pinned(request: FeatureRequest, frame: EntityFrame) -> tuple[PinnedRead, ...]:
        if not direct:
            return _committed(workspace, request, as_of)
        pins, folder = _staged(workspace, request, frame, as_of, now_us)
        folders.append(folder)
        return pins

    joins, offline, pins = workspace.engine.joins, workspace.offline, pinned(request, frame)
    beside = []
    for label, facts in zip(labels, old_enough.facts, strict=True):
        later = label.frame(frame.own, frame.timestamp_column)
        of_label = JoinedRows(joins, offline, (), label.request, later, pinned(label.request, later), direct)
        beside.append(JoinedLabel(label, of_label, facts))
    rows = JoinedRows(joins, offline, functions, request, frame, pins, direct, tuple(beside))
    made = TrainingSet(
        workspace,
        rows,
        gaps=() if direct else find_gaps(workspace.ledger, pins, frame.times, now_us),
        after_now=int((frame.times > now_us).sum()),
        checks_availability=as_of is None,
        notes={} if direct else find_notes(workspace, rows.all_pins),
        told=[*filter(None, [old_enough.text(now_us)]), *deprecations(snapshot, request)],
        left_out=old_enough.left_out,
    )
    for folder in folders:
        weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
    return made


def find_gaps(ledger: LedgerReader, pins: Sequence[PinnedRead], times: npt.NDArray[np.int64], now_us: int) -> list[Gap]:
    """Return for each view, once, what entity rows need that was never committed."""
    registered = {pinned.read.view.name: pinned.read.registered for pinned in pins}
    gaps = [find_gap(view, read_watermark(ledger, view), times, now_us) for view in registered.values()]
    return [gap for gap in gaps if gap is not None]


def _committed(workspace: Readers, request: FeatureRequest, as_of: AsOf | None) -> tuple[PinnedRead, ...]:
    """Pin the newest version of every view once; MismatchError where a table is not as the registry's runs left it."""
    remembered = Remembered(workspace.ledger, workspace.project)
    found = {read.view.name: read.registered for read in request.reads}
    for registered in found.values():
        refuse(compare_commit(workspace.ledger, workspace.offline, registered, remembered))  # it would lack rows
    versions = {name: workspace.offline.current(registered.table) for name, registered in found.items()}
    return tuple(pin(read, as_of, versions[read.view.name]) for read in request.reads)


def _staged(
    workspace: Readers, request: FeatureRequest, frame: EntityFrame, as_of: AsOf | None, now_us: int
) -> tuple[tuple[PinnedRead, ...], Path]:
    """Read the sources into a folder of this set's own."""
    folder = Path(tempfile.mkdtemp(prefix="featurestore-direct-"))
    try:
        views = {read.view.name: read.view for read in request.reads}
        staged = {name: _stage(workspace.engine.log, view, frame, folder, now_us) for name, view in views.items()}
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return tuple(pin(read, as_of, None, staged[read.view.name]) for read in request.reads), folder


def find_notes(workspace: Readers, pins: Sequence[PinnedRead]) -> dict[str, str]:
    """Return notes by view about its table: whose it is, and which features its spans lack."""
    remembered = Remembered(workspace.ledger, workspace.project)
    asked: dict[str, set[str]] = {}
    for pinned in pins:
        view = pinned.read.view
        asked.setdefault(view.name, set()).update(*map(view.made_of, pinned.read.features))
    found = {}
    for name, registered in {pinned.read.view.name: pinned.read.registered for pinned in pins}.items():
        mismatch = compare_table(workspace, registered, remembered)
        unread = read_unread(workspace.registry, registered, remembered.of(registered)[0])
        texts = [*([] if mismatch is None else [mismatch.message]), *unread.texts(asked[name])]
        if texts:
            found[name] = " ".join(texts)
    return found


def _stage(log: Log, view: FeatureView, frame: EntityFrame, folder: Path, now_us: int) -> tuple[str, ...]:
    """Read what the entity rows can see of a view's source into files."""
    if not len(frame):
        return ()
    first, last = int(frame.times.min()), min(int(frame.times.max()), now_us)
    start_us = view.reaches_back_to(first)
    place = folder / view.name
    place.mkdir()
    request = StageRequest(
        view=view,
        spans=(Span(start_us, max(last, start_us) + 1),),
        now_us=now_us,
        log_files=(),
        first_sequence=0,
        folder=place,
    )
    return tuple(map(str, log.stage(request).paths))


def _span(
    workspace: Workspace,
    request: FeatureRequest,
    timestamp_column: str,
    start: datetime | str | int | None,
    end: datetime | str | int | None,
    as_of: AsOf | None,
    direct: bool,
) -> TrainingSet:
    if start is None or end is None:
        raise InputError(
            "There is no entity frame.", hint="Pass one, or start= and end= for one view's own rows in that span."
        )
    if direct:
        raise InputError(
            "direct=True reads sources, but a span without an entity frame comes from the offline store.",
            hint="Leave direct=True out, or pass an entity frame.",
        )
    if len(request.reads) != 1 or request.on_demand:
        raise InputError(
            "Without an entity frame you can only read the rows of one view.",
            hint="Ask for features of one view, or pass an entity frame.",
        )
    start_us, end_us = to_instant(start), to_instant(end)
    if start_us >= end_us:
        span = f"from {to_rfc3339(start_us)} to {to_rfc3339(end_us)}"
        raise IntervalError(f"The span {span} is empty.", hint="start is included, end is not.")
    (read,) = request.reads
    own = [*(column for _, column in read.key_columns), timestamp_column]
    request.check_own_columns(own)
    if len({name.lower() for name in own}) < len(own):
        raise OutputNameClashError(
            f"The time column {timestamp_column!r} has the name of a join key.", hint="Pass another timestamp_column=."
        )
    if not workspace.engine.capabilities.reads_sql:
        raise InputError("This engine reads no spans.", hint="Pass an entity frame.")
    if read.view.aggregations:
        raise InputError(
            f"View {read.view.name!r} has windows over events: it has a value at any instant, and no rows of its own.",
            hint="Pass an entity frame with the instants. Its events are there as SQL: entity_df='SELECT * FROM "
            f"{read.view.name}'.",
        )
    pins = _committed(workspace, request, as_of)
    rows = SpanRows(workspace.engine.queries, workspace.offline, request, pins, timestamp_column, start_us, end_us)
    return TrainingSet(workspace, rows, told=deprecations(workspace.snapshot(), request))
