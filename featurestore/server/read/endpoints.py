"""Online reads over HTTP: two request forms, one path to the store, two forms of answer.

Nothing here touches a Request or Response object. Slow work runs in threads: answers with many values in one group,
answers with on-demand functions in another, because nobody knows how long functions take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic, perf_counter
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta
from starlette.types import Scope
from typing_extensions import override

from featurestore.errors import InputError, OnlineStoreUnavailableError
from featurestore.online.interface import AsyncReader
from featurestore.online.records.codec import MOST_VALUES_AT_ONCE, pieces
from featurestore.online.records.windowed import is_windowed, readable_entries
from featurestore.server.http.bodies import KEPT, MOST_ROWS, Columns, JsonEndpoint, Name
from featurestore.server.http.errors import RequestError, check_count
from featurestore.server.read.served import ServedLogs
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.read.templates import MOST_FEATURES, Asked, Pattern, Template
from featurestore.server.read.threads import THREADS, AllBusyError, Threads
from featurestore.server.watch.metrics import Metrics
from featurestore.serving.compiled import Answer, CompiledRequest, Query
from featurestore.statuses import Status
from featurestore.types.times import Clock, to_instant, to_rfc3339

ABSENT_SCHEMA_SECONDS = 10.0
"""Seconds until a schema that the store did not hold is looked up again."""

WARM_SECONDS = 10.0
"""How long the server's start waits for the on-demand functions, and then for the tables of push sources."""

ENDING_SECONDS = 1.0
"""How long the server's shutdown waits for all on-demand functions together that do not return."""

FUNCTION_WAIT_SECONDS = 1.0
"""How long a request waits for one of the threads of on-demand functions."""

EPOCH_TEXT = "1970-01-01T00:00:00Z"

_U, _L = b"ul"
"""Two bytes of ``null``: a search for one byte is ten times as fast as for a word, and few other texts have both."""

# `/openapi.json` describes the bodies by these classes, with their docstrings and descriptions.
NO_FEATURES = msgspec.Raw(b"null")
Features = Annotated[
    msgspec.Raw,
    Meta(
        description="`view:feature`, or `view:*` for all of a view, in the order of the answer.",
        extra_json_schema={
            "type": ["array", "null"],
            "items": {"type": "string", "maxLength": 256},
            "maxItems": MOST_FEATURES,
        },
    ),
]
Service = Annotated[Name | None, Meta(description="All features of this service, in its order.")]
FullNames = Annotated[bool, Meta(description="Name outputs `view__feature`.")]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]


class OnlineRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Either `features` or `feature_service`."""

    # A default that is made each time is not described: a Raw cannot be.
    features: Features = msgspec.field(default_factory=lambda: NO_FEATURES)
    feature_service: Service = None
    entities: Annotated[Columns, Meta(description="Join keys, one list each. Int64 keys may be decimal strings.")] = {}
    request_data: Annotated[Columns, Meta(description="Values for on-demand features, one list each.")] = {}
    include: Annotated[
        tuple[Literal["status", "event_timestamp"], ...],
        Meta(description="What the answer holds in addition to the values."),
    ] = ("status",)
    full_feature_names: FullNames = False


class FeastRequest(msgspec.Struct, kw_only=True):
    """As Feast's clients send it. Other keys are ignored."""

    features: Features = msgspec.field(default_factory=lambda: NO_FEATURES)
    feature_service: Service = None
    entities: Annotated[Columns, Meta(description="Join keys and request data, one list each.")]
    full_feature_names: FullNames = False
    include_feature_view_version_metadata: Annotated[
        bool, Meta(description="Adds `feature_view_metadata`: each view with its generation.")
    ] = False


class FeastView(msgspec.Struct):
    """A view that was read, and its generation."""

    name: str
    version: int


class FeastMetadata(msgspec.Struct):
    """The columns of an answer."""

    feature_names: list[str]
    feature_view_metadata: list[FeastView] | msgspec.UnsetType = msgspec.UNSET


class FeastColumn(msgspec.Struct):
    """One column of an answer, with an item for each entity row."""

    values: list[Any]
    statuses: list[Status]
    event_timestamps: list[Instant]


class FeastAnswer(msgspec.Struct):
    """Column-major: `metadata.feature_names[i]` belongs to `results[i]`, join keys first."""

    metadata: FeastMetadata
    results: list[FeastColumn]


Encode = Callable[[Template, Answer], bytes]


class _Made(NamedTuple):
    """The body of an answer, and what metrics need."""

    body: bytes
    decoded: float
    """When its values were ready, on `perf_counter`."""
    answer: Answer | None
    """None where the answer took the short way."""
    with_nulls: list[Pattern]


class OnlineReads:
    """From a shape and columns to an answer's bytes, by one store's asynchronous reader."""

    def __init__(self, snapshots: SnapshotKeeper, clock: Clock, metrics: Metrics, served: ServedLogs) -> None:
        self._snapshots = snapshots
        self._served = served
        self._clock = clock
        self._metrics = metrics
        self._absent: dict[bytes, float] = {}
        self._long_answers = Threads("answer")
        self._functions = Threads("function", ending_seconds=ENDING_SECONDS, waiting_seconds=FUNCTION_WAIT_SECONDS)
        self.reader: AsyncReader | None = None

    async def warm(self) -> None:
        """Compile requests and import on-demand functions, so that the first requests need not wait."""
        templates = self._snapshots.current
        templates.prepare(templates.services())
        with suppress(TimeoutError):  # requests will report a function that does not return
            await asyncio.wait_for(self._functions.run(templates.rehearse), WARM_SECONDS)

    def close(self) -> None:
        """End the threads."""
        self._long_answers.close()
        self._functions.close()

    async def answer(
        self,
        asked: Asked,
        columns: Mapping[str, Sequence[Any]],
        started: float,
        encode: Encode,
        state: dict[str, Any],
        *,
        may_be_short: bool = False,
    ) -> bytes:
        """Return a request's answer, made by one revision of the definitions, and keep it where the log takes it.

        The scope's ``state`` is told whether it does. ``started`` is the instant on `perf_counter` at which reading the
        request began. With ``may_be_short`` the request wants rows with statuses, for which there is a short way when
        no value is missing. Raises as its parts do.
        """
        rows = max(map(len, columns.values()), default=0)
        check_count(rows, MOST_ROWS, "too_many_entities", "entity rows", "Ask in several requests.")
        template = self._snapshots.current.template(asked)
        compiled = template.compiled
        query = compiled.query(columns)
        parsed = perf_counter()
        if self.reader is None:
            raise OnlineStoreUnavailableError("The online store is not open.")
        records: Records = await self.reader.mget(query.keys) if query.keys else []
        fetched, now_us = perf_counter(), self._clock()
        made: _Made | None
        if compiled.has_functions or query.rows * len(compiled.names) > MOST_VALUES_AT_ONCE:
            records = await self._learned(compiled, query, records, now_us)
            work = partial(_made, template, query, records, now_us, encode, may_be_short=may_be_short)
            made = await (self._with_functions(work) if compiled.has_functions else self._long_answers.run(work))
        else:
            made = _made_short(template, query, records, now_us) if may_be_short else None
            if made is None:
                records = await self._learned(compiled, query, records, now_us)
                made = _made_whole(template, query, records, now_us, encode)
        transform_s = 0.0
        if made.answer is None:
            self._metrics.answered_fresh(template, query.rows, made.with_nulls)
        else:
            self._metrics.answered(template, made.answer)
            transform_s = made.answer.transform_seconds
        if template.served is not None:
            found, offer = made.answer if compiled.has_functions else None, self._served.offer
            state[KEPT] = offer(template.served, state["request_id"], columns, query, records, now_us, found)
        if self._metrics.is_sample():
            spent = parsed - started, fetched - parsed, made.decoded - fetched - transform_s, transform_s
            ages, waiting = _ages(template, query, records, now_us), _newest_events(template, query, records)
            self._metrics.sample((*spent, perf_counter() - made.decoded), ages, waiting)
        return made.body

    async def _with_functions(self, work: Callable[[], _Made]) -> _Made:
        try:
            return await self._functions.run(work)
        except AllBusyError:
            self._metrics.functions_busy.inc()
            raise RequestError(
                503,
                "on_demand_busy",
                f"On-demand functions have kept all {THREADS} threads of this worker busy for"
                f" {FUNCTION_WAIT_SECONDS:g} s. Try again.",
                headers=[(b"retry-after", b"1")],
                hint="Make slow on-demand functions quicker, or serve with more workers.",
            ) from None

    async def _learned(self, compiled: CompiledRequest, query: Query, records: Records, now_us: int) -> Records:
        """Look up what `CompiledRequest.answer` needs beside records; return these, those that were missing read again.

        A mark that came since says that there are no events; the record came with it.
        """
        if None not in records:
            await self._learn(compiled.missing_schemas(query, records, now_us))
        elif await self._learn(compiled.missing_schemas(query, records, now_us)):
            assert self.reader is not None
            missing = [key for key, record in zip(query.keys, records, strict=True) if record is None]
            found = iter(await self.reader.mget(missing))
            records = [next(found) if record is None else record for record in records]
            await self._learn(compiled.missing_schemas(query, records, now_us))
        return records

    async def _learn(self, missing: Mapping[bytes, Sequence[Callable[[bytes | None], None]]]) -> bool:
        """Look up the schemas of older records, and marks; return whether there were any to ask for.

        Does not repeat the search for a missing one with every request.
        """
        now = monotonic()
        wanted = [key for key in missing if self._absent.get(key, 0.0) <= now]
        if not wanted:
            return False
        assert self.reader is not None
        for key, document in zip(wanted, await self.reader.mget(wanted), strict=True):
            if document is None:
                if len(self._absent) >= MOST_ROWS:
                    self._absent.clear()
                self._absent[key] = now + ABSENT_SCHEMA_SECONDS
            for learn in missing[key]:
                learn(document)
        return True


class OnlineEndpoint(JsonEndpoint[OnlineRequest]):
    """``POST /v1/online-features``: row-major, features only, ready for a model."""

    def __init__(self, reads: OnlineReads, max_body: int) -> None:
        super().__init__(OnlineRequest, max_body)
        self._reads = reads

    @override
    async def answer(self, request: OnlineRequest, scope: Scope, started: float) -> bytes:
        features = bytes(request.features)
        if (features == b"null") == (request.feature_service is None):
            raise InputError("Ask for either features or a feature_service.", hint="Send one of the two.")
        asked = Asked(features, request.feature_service, request.full_feature_names)
        columns = request.entities
        if request.request_data:
            twice = columns.keys() & request.request_data.keys()
            if twice:
                raise InputError(f"{min(twice)!r} is given both in entities and in request_data.", hint="Send it once.")
            columns = {**columns, **request.request_data}

        encode = partial(online_body, include=request.include)
        has_status = request.include == ("status",)
        return await self._reads.answer(asked, columns, started, encode, scope["state"], may_be_short=has_status)


class FeastEndpoint(JsonEndpoint[FeastRequest]):
    """``POST /get-online-features``: column by column, as Feast's own client reads it."""

    def __init__(self, reads: OnlineReads, max_body: int) -> None:
        super().__init__(FeastRequest, max_body)
        self._reads = reads

    @override
    async def answer(self, request: FeastRequest, scope: Scope, started: float) -> bytes:
        features = b"null" if request.feature_service is not None else bytes(request.features)
        asked = Asked(features, request.feature_service, request.full_feature_names)

        encode = partial(feast_body, request=request)
        return await self._reads.answer(asked, request.entities, started, encode, scope["state"])


Records = Sequence[bytes | None]


def _made(
    template: Template, query: Query, records: Records, now_us: int, encode: Encode, *, may_be_short: bool
) -> _Made:
    short = _made_short(template, query, records, now_us) if may_be_short else None
    return _made_whole(template, query, records, now_us, encode) if short is None else short


def _made_short(template: Template, query: Query, records: Records, now_us: int) -> _Made | None:
    rows = template.compiled.fresh_rows(query, records, now_us)
    decoded = perf_counter()
    short = None if rows is None else _short_body(template, rows)
    return None if short is None else _Made(short[0], decoded, None, short[1])


def _made_whole(template: Template, query: Query, records: Records, now_us: int, encode: Encode) -> _Made:
    answer = template.compiled.answer(query, records, now_us)
    decoded = perf_counter()
    return _Made(encode(template, answer), decoded, answer, [])


def _rows_text(rows: Sequence[Sequence[Any]]) -> bytes:
    """Return rows as JSON."""
    if len(few := pieces(rows, len(rows[0]) if rows else 0)) == 1:
        return msgspec.json.encode(rows)
    return b"".join((b"[", b",".join([msgspec.json.encode(part)[1:-1] for part in few]), b"]"))


def _short_body(template: Template, rows: list[list[Any]]) -> tuple[bytes, list[Pattern]] | None:
    """Return `online_body` with statuses, for rows whose values are all PRESENT or NULL_VALUE, and the rows with nulls.

    The JSON text itself shows whether it may hold a null. Returns None if a null has to become a default.
    """
    if not template.expects_nulls:
        text = _rows_text(rows)
        if _U not in text or _L not in text or b"null" not in text:
            statuses = b",".join([template.present.statuses] * len(rows))
            return b"".join((b'{"names":', template.names, b',"rows":', text, b',"status":[', statuses, b"]}")), []
    encoded = list(map(msgspec.json.encode, rows))
    patterns = [
        template.pattern(row, text) if _U in text and _L in text else template.present
        for row, text in zip(rows, encoded, strict=True)
    ]
    with_nulls = [pattern for pattern in patterns if pattern is not template.present]
    template.expects_nulls = bool(with_nulls)
    if template.compiled.has_defaults and with_nulls:
        return None
    statuses = b",".join([pattern.statuses for pattern in patterns])
    parts = (b'{"names":', template.names, b',"rows":[', b",".join(encoded), b'],"status":[', statuses, b"]}")
    return b"".join(parts), with_nulls


def _ages(template: Template, query: Query, records: Records, now_us: int) -> Iterator[tuple[str, float]]:
    """Yield each view's name and the age, in seconds, of the first record of a request that is not from the future."""
    for view, instants in zip(template.views, template.compiled.event_us(query, records, now_us), strict=True):
        age_us = next((now_us - at for at in instants if at is not None and at <= now_us), None)
        if age_us is not None:
            yield view, age_us / 1_000_000


def _newest_events(template: Template, query: Query, records: Records) -> Iterator[tuple[str, int]]:
    """Yield each view with windows and how many newest events wait in its first record of a request."""
    for view, found in zip(template.views, template.compiled.records(query, records), strict=True):
        first = next((record for record in found if record is not None), None)
        if first is not None and is_windowed(first):
            yield view, sum(1 for _ in readable_entries(first))


def online_body(template: Template, answer: Answer, include: Sequence[str]) -> bytes:
    """Return ``{"names", "rows", "status", "event_timestamp"}``; the last two only where they are asked for."""
    body: dict[str, Any] = {"names": msgspec.Raw(template.names), "rows": msgspec.Raw(_rows_text(answer.rows()))}
    if "status" in include:
        statuses = answer.status_rows()
        if statuses is None:
            body["status"] = [msgspec.Raw(template.present.statuses)] * answer.row_count
        else:
            body["status"] = statuses
    if "event_timestamp" in include:
        body["event_timestamp"] = {
            view: [None if instant is None else to_rfc3339(instant) for instant in instants]
            for view, instants in answer.event_us().items()
        }
    return msgspec.json.encode(body)


def feast_body(template: Template, answer: Answer, request: FeastRequest) -> bytes:
    """Return a `FeastAnswer`.

    The client's own join keys come first, as they were sent; Timestamp features are integer seconds, and there
    is an event timestamp everywhere, as Feast's servers answer.
    """
    compiled, epochs = template.compiled, [EPOCH_TEXT] * answer.row_count
    keys = [name for name in request.entities if name in compiled.request.key_types]
    compiled.request.check_own_columns(keys)
    results = [
        FeastColumn(values, [Status.NULL_VALUE if value is None else Status.PRESENT for value in values], epochs)
        for values in map(request.entities.__getitem__, keys)
    ]
    times = {
        alias: [EPOCH_TEXT if instant is None else _feast_time(instant) for instant in instants]
        for alias, instants in answer.event_us().items()
    }
    for output, values, statuses in zip(
        compiled.request.outputs, answer.columns(), answer.status_columns(), strict=True
    ):
        innermost = output.field.type
        while innermost.item is not None:
            innermost = innermost.item
        own = [_in_seconds(value) for value in values] if innermost.name == "Timestamp" else values
        results.append(FeastColumn(own, statuses, times.get(output.alias, epochs)))
    metadata = FeastMetadata([*keys, *compiled.names])
    if request.include_feature_view_version_metadata:
        metadata.feature_view_metadata = [
            FeastView(read.name, read.registered.generation) for read in compiled.request.reads
        ]
    if answer.row_count * len(results) <= MOST_VALUES_AT_ONCE:
        return msgspec.json.encode(FeastAnswer(metadata, results))
    found = [msgspec.Raw(msgspec.json.encode(result)) for result in results]  # one by one: see `pieces`
    return msgspec.json.encode({"metadata": metadata, "results": found})


def _feast_time(instant: int) -> str:
    return to_rfc3339(instant).replace(".000000Z", "Z")


def _in_seconds(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_seconds(item) for item in value]
    return None if value is None else to_instant(value) // 1_000_000
