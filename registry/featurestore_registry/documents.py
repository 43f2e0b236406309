"""The documents of the ledger that other programs read: a catalog shows them without importing featurestore.

Each is the newest entry of its kind and key: a JSON object with these fields, where tuples are lists. Instants are UTC
microseconds. No field changes its meaning or goes, and a watermark never gains one: earlier releases read it strictly.
Runs may gain fields, so a reader skips those that it does not know, as ``msgspec.convert(document, RunDocument)`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

WATERMARK, RUN_START, RUN = "watermark", "run_start", "run"
"""Kinds of entries. The key of a watermark is ``{view}.{generation}``, of a run the view."""
STATISTICS, EDGES = "statistics", "edges"
"""Kinds of entries. The key of both is ``{view}.{generation}``; that of a saved training set's statistics is
``training_set:{name}``. An on-demand feature view has generation 0."""
QUARANTINE = "quarantine"
"""The kind of entries about rows that are set aside; the key is ``{view}.{generation}``."""
MONITOR = "monitor"
"""A kind of entries: what a monitor found. The key is its name."""
CONSUMER, TRAINING_SET = "consumer", "training_set"
"""Kinds of entries. The key of both is the name; a deleted one's newest document is one of `DELETED`."""
DELETED: tuple[Mapping[str, bool], ...] = ({"deleted": True}, {"gone": True})
"""How the feature store marks an entry as deleted: the ledger only grows."""
AUDIT, SERVING = "audit", "serving"
"""Kinds of entries of the journal: who changed what, and what feature servers say about themselves."""

Interval = tuple[int, int]
"""[start, end) of event time, UTC microseconds."""
RunKind = Literal["interval", "incremental", "rebuild", "republish", "release"]
RunState = Literal["running", "done", "failed", "killed"]


@dataclass(frozen=True, slots=True)
class WatermarkDocument:
    """What was committed and published of one generation of a view, never what was intended."""

    intervals: tuple[Interval, ...] = ()
    """Spans of event time whose source rows are committed: sorted and disjoint."""
    begun_us: int | None = None
    """The source's first event when an incremental run first read it: everything from there on is wanted."""
    source_begun_us: int | None = None
    """For windows, which look back before the rows that ask: the source's first event, as seen by the run with dates
    that read the first committed span; the end of its span where the source was empty."""
    created_until_us: int | None = None
    """Within the intervals, rows created up to here are committed; None where the source has no created time."""
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """For each source the files that were read completely, with fingerprints of their size, time and content."""
    table_version: int | None = None
    """The version of the offline table that holds the rows."""
    published_version: int | None = None
    """The table version whose changes are all online."""
    offline_rows: int = 0
    online_rows: int = 0
    """Records online: exact after a publish of everything, otherwise the most that one publish wrote."""
    greatest_event_us: int | None = None
    """Greatest event time committed, rounded up to a millisecond: how fresh the view is."""


@dataclass(frozen=True, slots=True)
class WrittenDocument:
    """The counts of one view's rows in the online store."""

    # In the order of the results of a write, which are counted in that order.
    written: int = 0
    stale: int = 0
    """The store held a newer record, which stayed."""
    expired: int = 0
    """Not written, because past their ttl and its grace."""
    wrong_type: int = 0
    """The key held something that is not a record; it was left alone."""


@dataclass(frozen=True, slots=True)
class PublishedDocument(WrittenDocument):
    """The counts of the records that a run sent online."""

    repaired: int = 0
    """Records of withdrawn rows that the entity's next best row replaced."""
    deleted: int = 0
    """Records of withdrawn rows that were deleted, because the entity has no other row."""
    wrong_type_keys: tuple[str, ...] = ()
    """The first few of them."""


@dataclass(frozen=True, slots=True)
class RunDocument:
    """One run of one view: written when it starts (``run_start``) and when it ends (``run``). Counts are rows."""

    run_id: str
    """The same when it starts and when it ends; a start without an end is a run under way, or one that was killed."""
    view: str
    generation: int
    kind: RunKind
    state: RunState
    started_us: int
    host: str
    pid: int
    intervals: tuple[Interval, ...] = ()
    """The requested spans of event time; an incremental run also read what changed elsewhere."""
    read: int = 0
    appended: int = 0
    duplicates: int = 0
    """Rows that were dropped, because a later one has the same keys and times; of events those that repeat another."""
    unchanged: int = 0
    null_keys: int = 0
    """Dropped."""
    null_times: int = 0
    """Dropped."""
    waiting: int = 0
    """Rows dated after now: left for a later run."""
    withdrawn: int = 0
    """Rows that a rebuild withdrew: the source no longer holds them, or of events holds them with other values."""
    damaged: int = 0
    """Rows of damaged files that a rebuild left out before it read the source."""
    table_version: int | None = None
    published: PublishedDocument = field(default_factory=PublishedDocument)
    duration_ms: int | None = None
    error: str | None = None
    dry_run: bool = False
    """Whether the run only counted and wrote nothing."""
    unusable: int = 0
    """Events that were dropped, because they have no id or a text that is too long."""
    conflicts: int = 0
    """Events among ``unchanged`` and ``duplicates`` that differ from the one of their id that counts."""
    conflicts_in_source: int = 0
    """Those of which the source holds the id with other values, too: a rebuild does not end them."""
    unmet: tuple[str, ...] = ()
    """What was expected of the rows and is not so, in words and without values."""
    accepted: str = ""
    """With which reason, and by whom, rows that would have been blocked were accepted, or were released."""
    quarantined: int = 0
    """Rows that were set aside, because they fail rules."""


@dataclass(frozen=True, slots=True)
class QuarantineDocument:
    """The rows of one generation of a view that are set aside, and that nobody has released or dropped."""

    held: int = 0
    rules: Mapping[str, int] = field(default_factory=dict)
    """How many of them fail each rule: ``field: rule``. A row may fail several."""
    files: str = ""
    """A hash of the names of the files from which this was counted."""
    lost: int = 0
    """Rows that were held, and that no file has any more though nobody decided about them."""
    span_us: tuple[int, int] | None = None
    """The least and the greatest event time of what is held or lost; None where nothing is."""


Scalar = bool | int | float | str | None
"""A value as JSON: instants RFC 3339 with microseconds, dates ISO, decimals as text, bytes in base64."""
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
"""Of which `ColumnStatistics.quantiles` holds the values."""


@dataclass(frozen=True, slots=True)
class BinsDocument:
    """The bins in which one column is counted, wherever it is counted. Bins of another version are another array."""

    version: int = 1
    """Grows when too many values had come to lie outside, and the bins were made again."""
    points: tuple[Scalar, ...] = ()
    """Values with a bin of their own, sorted: those of over 5 % of the rows; all where there are few; of texts and
    bools the most frequent."""
    edges: tuple[float, ...] = ()
    """Ascending, at least two or none. Between two of them lies a bin, with its lower edge; the last bin with both.
    Numbers and times (these in UTC microseconds) only. Bins hold about as many rows each and differ in width: a drawing
    shows rows by width."""
    rows: int = 0
    """The rows of the log when they were made from a sample of it; below 10,000 they are provisional."""
    made_us: int = 0
    outside: float = 0.0
    """The share of those rows that lay in no bin."""


@dataclass(frozen=True, slots=True)
class EdgesDocument:
    """The bins of the columns of a view's generation: of its stored columns, and of its windowed features."""

    columns: Mapping[str, BinsDocument] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """One column of the rows that a run appended, or of a training set. Shares are left to the reader."""

    name: str
    type: str
    role: Literal["key", "feature", "input"] = "feature"
    """Of keys no value shows. An input is a column that windowed features are computed from."""
    rows: int = 0
    nulls: int = 0
    not_finite: int = 0
    """NaN and infinities: in no other figure than this and the number of rows."""
    distinct: int | None = None
    """Approximate, within a few percent; exact where there are few. None where the type has none, such as arrays."""
    minimum: Scalar = None
    """A text of more than 109 characters is cut to 100, and 8 digits of its MD5 tell it apart, here and below."""
    maximum: Scalar = None
    mean: float | None = None
    """Of numbers only, as the deviation."""
    deviation: float | None = None
    """Standard deviation of the rows, not of a population that they are drawn from."""
    quantiles: tuple[Scalar, ...] = ()
    """At each of `QUANTILES`, from the sample: the least value that this share of rows is not above; empty where the
    type has no order that helps."""
    top: tuple[tuple[Scalar, int], ...] = ()
    """At most ten of the most frequent values with their rows in the sample, most frequent first; empty where values
    may not show, and of columns with more than 100 different ones unless the view asks for them."""
    is_hidden: bool = False
    """Whether no value shows, because the column is a key or tagged ``personal``."""
    bins: int | None = None
    """The version of the column's `BinsDocument`; None where it is not counted in bins."""
    at_points: tuple[int, ...] = ()
    """Rows of the sample with each value of its ``points``."""
    in_bins: tuple[int, ...] = ()
    """Rows of the sample below the first edge, in each bin, above the last edge; empty without edges."""
    elsewhere: int = 0
    """Rows of the sample with a value that no point holds, of a column without edges, such as texts."""
    feature: str = ""
    """Of a training set, whose columns may have other names: the feature as ``{view}.{generation}:{name}``, under which
    its bins are."""


@dataclass(frozen=True, slots=True)
class StatisticsDocument:
    """What a run appended to a view, or what a saved training set holds, column by column."""

    made_us: int
    rows: int
    sampled: int
    """Rows that quantiles, top values and bins were counted from: a sample by a hash, or all of them."""
    columns: tuple[ColumnStatistics, ...]
    run_id: str = ""
    """The run that appended the rows; empty for a training set."""
    revision: str = ""
    """The hash of the definitions' revision."""
    code_hash: str = ""
    """Of the code that on-demand features of a training set were computed with; of a view's SQL."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each source its files when the run read them, at most 100."""


@dataclass(frozen=True, slots=True)
class ConsumerDocument:
    """A model or program that reads features."""

    name: str
    services: tuple[str, ...]
    """The feature services that it reads."""
    owner: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class ViewCertificate:
    """What a certificate states about one view."""

    name: str
    """The name under which this set reads it."""
    view: str
    generation: int
    table_version: int | None
    """None where nothing was committed, and in direct sets."""
    as_of: str
    availability: str
    """Whether the time at which values became known counts, and by which column."""
    rests_on: str
    """What the promise depends on besides the rows; empty if nothing."""
    features: tuple[str, ...]
    nulls: Mapping[str, int]
    """How many rows have no answer, by the first reason that applies."""
    null_values: Mapping[str, int]
    """How many rows have null as their answer, by feature."""
    greatest_age_us: int | None
    from_future: int | None
    """How many answers have an event time or availability after their row's time; None for windows, which nobody counts
    so: plain loops compute samples again, of the events that their rows can see."""
    not_covered: int
    """How many rows look past the committed spans."""
    windows: int = 0
    """How many of the features are windows over events; then a row always has an answer, unless its key is null."""
    own_events: int = 0
    """How many rows count an event of their very instant, which at serving time may not be known yet."""
    held_back: int = 0
    """In how many rows events have happened, and none is available."""
    overflowed: Mapping[str, int] = field(default_factory=dict)
    """How many rows are null because 64 bits do not hold the sum, by feature."""


LABEL = "label"
"""Key of a label's column in a saved set's references, where features have none; null for the feature's own name."""


@dataclass(frozen=True, slots=True)
class LabelCertificate:
    """What a certificate states about one label: it is known at the end of a horizon after the row, not before."""

    name: str
    """Its column."""
    feature: str
    """``view:feature``."""
    horizon_us: int
    not_matured: int
    """Rows that are left out because their horizon had not ended."""
    not_committed: int
    """Rows that are left out because not all that happened in their horizon was committed."""
    without_label: int
    """Rows with a null label: nothing happened in their horizon, or nothing that was known at its end."""
    recomputed_rows: int
    """How many labels plain loops over the files gave again."""
    view: ViewCertificate
    """Its view, at the ends of the horizons: ``from_future`` counts what was known only after them."""


@dataclass(frozen=True, slots=True)
class CertificateDocument:
    """Facts about a training set at its pinned versions."""

    project: str
    registry_revision: int
    rows: int
    features: tuple[str, ...]
    views: tuple[ViewCertificate, ...]
    on_demand: Mapping[str, str]
    """Hash of the code of each on-demand view."""
    rows_after_now: int
    recomputed_rows: int
    """How many rows plain loops over the files answered again, with the same values."""
    certified_at: str
    """RFC 3339."""
    labels: tuple[LabelCertificate, ...] = ()
    left_out: int = 0
    """Rows that are left out because a label of theirs was not known."""


@dataclass(frozen=True, slots=True)
class SavedRead:
    """One read of a saved set: the view under its name there, and the table version that it is pinned to."""

    name: str
    view: str
    generation: int
    version: int | None
    """None if nothing was committed when the set was saved."""
    as_of: str


@dataclass(frozen=True, slots=True)
class SavedFrame:
    """The kept entity frame."""

    form: str
    """The form of the original: ``pandas``, ``arrow`` or ``polars``."""
    file: str
    """The path below the offline store's folder."""
    sha256: str
    timestamp_column: str


@dataclass(frozen=True, slots=True)
class SavedSetDocument:
    """A saved training set."""

    name: str
    registry_revision: int
    references: tuple[Mapping[str, Any], ...]
    """The request, as `FeatureRequest.references`."""
    full_feature_names: bool
    reads: tuple[SavedRead, ...]
    frame: SavedFrame
    fingerprint: str
    """The hash of the feature columns."""
    certificate: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ServerDocument:
    """One process of a feature server, by its own words. The journal's key is the process."""

    instance: str
    """Its host, and what the processes of one `fs serve` share."""
    process: int
    host: str
    version: str
    """Of featurestore."""
    revision: int
    hash: str
    """The hash of that revision: after a restored backup the same number may be another one."""
    code: Mapping[str, str]
    """The hash of each on-demand function that it has loaded, by its view; views that are not applied yet, too."""
