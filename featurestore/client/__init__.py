"""A client of the feature server: ``pip install '.[client]'`` in a checkout.

It loads httpx and msgspec, nothing else; pyarrow where rows come as an Arrow stream.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from featurestore import errors
from featurestore.client.failures import error_of
from featurestore.client.predictions import Remembered, Requests, predicted
from featurestore.statuses import Status
from featurestore.tables import (
    NULLS,
    WHOLE_FLOAT_LIMITS,
    Table,
    as_arrow,
    as_list,
    float_bits,
    html_columns,
    import_polars,
    instants_as_list,
    library_type,
    read_table,
)

try:
    import httpx
    import msgspec
except ImportError as error:
    raise ImportError(f"featurestore.client needs {error.name}: run pip install '.[client]' in a checkout") from None

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

T = TypeVar("T")

ROUNDING = "event and created times up and all others down"
KEEP_CONNECTION_SECONDS = 30.0
"""Seconds an idle connection is kept: fewer than the server's, so that it never closes one under a request."""


class OnlineRows(msgspec.Struct, frozen=True):
    """An answer: the features in the order asked, one row for each entity row.

    Values are as in JSON: instants are RFC 3339 texts, dates ISO 8601 texts, decimals texts, bytes base64; 64-bit
    integers are exact. A value that is not PRESENT is None, or the feature's declared default.
    """

    names: list[str]
    """The columns, as in the answer."""
    rows: list[list[Any]]
    """The values of each entity row."""
    statuses: list[list[Status]] = msgspec.field(name="status")
    """The status of each value: PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE."""
    event_timestamps: dict[str, list[datetime | None]] | None = msgspec.field(name="event_timestamp", default=None)
    """The event time of each row's values, by view; None unless they were asked for."""
    request_id: str = ""
    """The id of the request, for `FeatureClient.log_prediction`."""
    is_kept: bool | None = None
    """Whether the served log keeps the answer; None of a service, or of features, without a log."""

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the values by feature, one for each row."""
        return {name: [row[place] for row in self.rows] for place, name in enumerate(self.names)}

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame with a column for each feature; columns with nulls take pandas' nullable dtypes."""
        return _frame(self.to_dict())


class OnlineResponse:
    """An answer to ``entity_rows``, with the methods of `FeatureStore`'s answer and the values of `OnlineRows`."""

    def __init__(self, own: Mapping[str, list[Any]], found: OnlineRows) -> None:
        self._own = own
        self._found = found
        self.names = tuple(found.names)
        self.request_id = found.request_id
        """The id of the request, for `FeatureClient.log_prediction`."""
        self.is_kept = found.is_kept
        """Whether the served log keeps the answer; None of a service, or of features, without a log."""

    @property
    def statuses(self) -> dict[str, list[Status]]:
        """What each value is, by feature column."""
        return {name: [row[place] for row in self._found.statuses] for place, name in enumerate(self.names)}

    @property
    def event_timestamps(self) -> dict[str, list[datetime | None]]:
        """The event time of each row's values by view, None where nothing was found; InputError if not asked for."""
        if self._found.event_timestamps is None:
            raise errors.InputError("Event timestamps were not asked for.", hint="Pass include_event_timestamps=True.")
        return {view: times.copy() for view, times in self._found.event_timestamps.items()}

    def to_dict(self, include_status: bool = False, include_event_timestamps: bool = False) -> dict[str, list[Any]]:
        """Return lists by column: your own, the features, then ``{name}__status`` and ``{view}__event_timestamp``."""
        columns = {name: values.copy() for name, values in self._own.items()} | self._found.to_dict()
        if include_status:
            columns |= {f"{name}__status": [status.value for status in found] for name, found in self.statuses.items()}
        if include_event_timestamps:
            columns |= {f"{view}__event_timestamp": times for view, times in self.event_timestamps.items()}
        return columns

    def to_arrow(self) -> pa.Table:
        """Return a table with the types that Arrow infers; raises InputError for your own column of several kinds."""
        import pyarrow as pa

        try:
            return pa.table({name: as_arrow(values) for name, values in self.to_dict().items()})
        except ValueError as error:
            raise errors.InputError(f"A column mixes types: {error}.", hint="Use to_dict().") from None

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame: numpy dtypes where there are no nulls, else pandas' nullable ones."""
        return _frame(self.to_dict())

    to_df = to_pandas

    def to_polars(self) -> pl.DataFrame:
        """Return a polars frame of `to_arrow`; raises InputError where polars is not installed."""
        return import_polars().DataFrame(self.to_arrow())

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """Return `to_arrow` as a stream, so that any library that reads Arrow streams takes an answer as a table."""
        return self.to_arrow().__arrow_c_stream__(requested_schema)

    def __len__(self) -> int:
        return len(self._found.rows)

    def __repr__(self) -> str:
        return f"OnlineResponse({len(self)} rows, {len(self.names)} features)"

    def _repr_html_(self) -> str:
        return html_columns(self.to_dict(), len(self))


class FeatureClient:
    """Reads features from a server, and pushes rows to it. Safe across threads; connections are pooled.

    >>> with FeatureClient("https://features.example", token) as client:         # doctest: +SKIP
    ...     found = client.get_online_features(["carrier_profile:last_delay"], {"carrier": ["UA", "AA"]})

    ``token`` goes with every call; ``timeout_s`` (1.0 unless given) bounds a whole read. Calls raise the errors of
    `featurestore.errors` that the same call raises in process; their ``details`` hold what the server sent, with its
    ``request_id``. They raise ServerUnavailableError when the server cannot be reached or does not answer in time; no
    call is tried twice. The constructor raises InputError when the URL is not http or https, or the token is
    ill-formed. No message holds a password or a token.
    """

    def __init__(self, url: str, token: str | None = None, *, timeout_s: float = 1.0) -> None:
        self._shown_url = _checked_url(url)
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"content-type": "application/json"}
        if token is not None:
            self._headers["authorization"] = f"Bearer {_checked_token(token)}"
        # Made once: reading the authorities' certificates takes longer than a request.
        self._tls = httpx.create_ssl_context() if self.url.startswith("https:") else False
        self._idle: list[httpx.Client] = []
        self._requests = Requests()
        self._closed = False

    @overload
    def get_online_features(
        self, features: Any, entity_rows: Any, *, full_feature_names: bool = ..., include_event_timestamps: bool = ...
    ) -> OnlineResponse: ...

    @overload
    def get_online_features(
        self,
        features: Any = ...,
        *,
        full_feature_names: bool = ...,
        include_event_timestamps: bool = ...,
        feature_service: str | None = ...,
        entities: Any,
        request_data: Any = ...,
    ) -> OnlineRows: ...

    def get_online_features(
        self,
        features: Any = None,
        entity_rows: Any = None,
        *,
        full_feature_names: bool = False,
        include_event_timestamps: bool = False,
        feature_service: str | None = None,
        entities: Any = None,
        request_data: Any = None,
    ) -> OnlineResponse | OnlineRows:
        """Return the newest values of some entities, with the arguments of `FeatureStore.get_online_features`.

        ``features`` is a list of ``"view:feature"`` and ``"view:*"`` texts, or a feature service or its name.
        ``entity_rows`` is any table that `FeatureStore` takes, with join keys and request data; every column is sent,
        and an empty list has no columns. The `OnlineResponse` has the same methods as in process. Its values are as in
        JSON (see `OnlineRows`; NaN is None), its types are inferred from them, and it has ``event_timestamps`` only
        with ``include_event_timestamps``. Raises what the same call raises in process, and InputError for what the
        server or JSON cannot express.

        You may pass the parts of the HTTP body instead, in the same forms: ``entities`` and ``request_data``, with
        ``features`` or the name of a ``feature_service``. The answer is then an `OnlineRows`.
        """
        body = {**_asked(features, feature_service), "full_feature_names": full_feature_names}
        if include_event_timestamps:
            body["include"] = ["status", "event_timestamp"]
        if entity_rows is None:
            body["entities"] = _columns(entities, "entity_rows or entities")
            body["request_data"] = _columns({} if request_data is None else request_data, "request_data")
            return self._read(body)
        if entities is not None or request_data is not None:
            raise errors.InputError("entities= or request_data= with entity_rows.", hint="Pass entity_rows alone.")
        own = body["entities"] = _columns(entity_rows, "entity_rows", errors.EntityKeyError)
        found = self._read(body)
        if twice := {name.lower() for name in own} & {name.lower() for name in found.names}:
            hint = "Rename your column, or pass full_feature_names=True."
            raise errors.OutputNameClashError(f"Your own column {min(twice)!r} has the name of an output.", hint=hint)
        return OnlineResponse(own, found)

    def _read(self, body: Mapping[str, Any]) -> OnlineRows:
        answer, headers = self._call("POST", "/v1/online-features", body)
        kept = headers.get("x-served-log")
        is_kept, request_id = None if kept is None else kept == "kept", headers.get("x-request-id", "")
        found = msgspec.structs.replace(self._decoded(answer, OnlineRows), request_id=request_id, is_kept=is_kept)
        if body.get("feature_service") is not None:
            self._requests.remember(request_id, Remembered(body["feature_service"], len(found.rows), is_kept))
        return found

    def log_prediction(
        self,
        request_id: str,
        values: Mapping[str, Any],
        *,
        model: str,
        service: str | None = None,
        only_kept: bool = True,
    ) -> int:
        """Have a server keep what a model predicted from an answer; return how many rows it took.

        ``request_id`` is the answer's, ``values`` holds by name a list of numbers, texts or booleans with a value for
        each entity row of the request, or one value where it had one row; NaN and infinities, which JSON does not have,
        are sent as none. ``model`` names the model and its version. ``service`` may be left out for the last 10,000
        requests of this client. Where the client knows that the served log does not keep the answer, nobody could join
        the prediction: it is not sent unless ``only_kept=False``. 0 also says that the server's queue was full, or that
        it knows too many names or models. Raises InputError, also for a name of which the server took another kind of
        value, and NotFoundError for a service without a log.
        """
        known = self._requests.find(request_id)
        if known is not None and known.is_kept is False and only_kept:
            return 0
        if service is None and known is None:
            raise errors.InputError(
                f"This client does not know the request {request_id!r}.",
                hint="Pass service=, the feature service that was asked for: the answer is older, of single features, "
                "or was given to another client.",
            )
        listed = predicted(values, None if known is None else known.rows)
        body = {
            "request_id": request_id,
            "service": known.service if service is None and known is not None else service,
            "model": model,
            "values": listed,
        }
        answer, _ = self._call("POST", "/predictions", body)
        return self._decoded(answer, dict[str, int])["rows"]

    def push(
        self,
        source: str,
        rows: Any,
        *,
        to: Literal["both", "online", "offline"] = "both",
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        """Push rows, in the forms of entity rows, to a push source; return what the server did with them.

        The server answers when the rows are committed, and groups the commits of up to a second: hence this call's own
        ``timeout_s``. It is safe to push rows again when no answer came.
        """
        table = read_table(rows, "rows")
        body = {"source": source, "rows": _listed(table) if table.has_names else [], "to": to}
        answer, _ = self._call("POST", "/push", body, timeout_s)
        return self._decoded(answer, dict[str, Any])

    def ready(self) -> bool:
        """Tell whether the server can be reached and its online store answers."""
        try:
            self._call("GET", "/ready")
        except errors.ServerUnavailableError:
            return False
        return True

    def close(self) -> None:
        """Close the connections; one in use is closed when its call ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(
        self, method: str, path: str, body: Any = None, timeout_s: float | None = None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Return the body and the headers of a 200; raises for everything else."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline, parts = _Deadline(timeout_s), []
        try:
            content = None if body is None else msgspec.json.encode(body, enc_hook=_plain)
        except (TypeError, ValueError, OverflowError) as error:
            raise errors.InputError(f"The request cannot be written as JSON: {error}.") from None
        try:
            with (
                self._connection() as http,
                http.stream(method, self.url + path, content=content, extensions={"timeout": deadline}) as response,
            ):
                for part in response.iter_bytes():
                    parts.append(part)
                    if deadline.has_passed():
                        raise httpx.ReadTimeout("the answer does not end")
        except httpx.TimeoutException as error:
            raise errors.ServerUnavailableError(f"{self._shown_url} did not answer within {timeout_s:g} s.") from error
        except httpx.DecodingError as error:
            raise errors.ServerError(f"{self._shown_url} answered what cannot be decoded: {error}.") from error
        except httpx.HTTPError as error:
            raise errors.ServerUnavailableError(f"{self._shown_url} cannot be reached: {error}.") from error
        if response.status_code != 200:
            raise error_of(self._shown_url, response, b"".join(parts))
        return b"".join(parts), response.headers

    @contextmanager
    def _connection(self) -> Iterator[httpx.Client]:
        """Lend a connection that no other thread uses.

        httpx's own pool, shared by threads, now and then closes a connection under a request: it takes a readable idle
        connection for a closed one, just when another thread has sent a request on it and the answer arrives.
        """
        try:
            http = self._idle.pop()
        except IndexError:
            limits = httpx.Limits(max_connections=1, keepalive_expiry=KEEP_CONNECTION_SECONDS)
            http = httpx.Client(headers=self._headers, verify=self._tls, limits=limits)
        try:
            yield http
        finally:
            self._idle.append(http)
            if self._closed:
                self.close()

    def _decoded(self, answer: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise errors.ServerError(f"{self._shown_url} answered what a feature server would not: {error}.") from None


class _Deadline(dict[str, float]):
    """httpx's timeouts of one request: each phase gets what is left of the whole."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = monotonic() + seconds

    def get(self, phase: str, default: Any = None) -> float:
        """Return the seconds left, at least a millisecond: 0 would mean not to wait at all."""
        return max(self._end - monotonic(), 0.001)

    def has_passed(self) -> bool:
        """Tell whether nothing is left."""
        return monotonic() > self._end


def _checked_url(url: Any) -> str:
    """Return a URL as messages show it; raises InputError for one that cannot be a server's."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise errors.InputError("The URL is not one of a server.", hint="Write it as https://features.example:6566.")
    return str(parsed.copy_with(username=None, password=None)).rstrip("/")


def _checked_token(token: Any) -> str:
    """Return a token without the line end of the file that it was read from; raises InputError, without its text."""
    stripped = token.strip() if isinstance(token, str) else ""
    if not stripped or not stripped.isascii() or not all(map(str.isprintable, stripped)) or " " in stripped:
        raise errors.InputError("No token was given.", hint="Pass it as `fs token create` printed it.")
    return stripped


def _asked(features: Any, feature_service: str | None) -> dict[str, Any]:
    """Return features as the server takes them; raises InputError for what has no name there."""
    if features is None:
        return {"feature_service": feature_service}
    if feature_service is not None:
        raise errors.InputError("features and feature_service= are both given.", hint="Pass one of them.")
    kind = getattr(features, "kind", None)  # of a definition, whose class is not loaded here
    if kind == "feature_service" or (isinstance(features, str) and ":" not in features):
        return {"feature_service": getattr(features, "name", features)}
    listed = [features] if kind or isinstance(features, str) or not isinstance(features, Iterable) else list(features)
    wrong = [each for each in listed if not isinstance(each, str)]
    if wrong:
        hint = 'Pass "view:feature" texts, or one feature service or its name.'
        raise errors.InputError(f"{wrong[0]!r} is not a feature that you can ask a server for.", hint=hint)
    return {"features": listed}


def _columns(given: Any, what: str, row_error: type[errors.InputError] | None = None) -> dict[str, list[Any]]:
    """Return any table as lists by column, as JSON has them."""
    return _listed(read_table(given, what, row_error=row_error))


def _listed(table: Table) -> dict[str, list[Any]]:
    return {name: _column(name, values) for name, values in table.columns.items()}


def _column(name: str, values: Any) -> list[Any]:
    listed = as_list(values)
    _check_certain(f"Column {name!r}", listed, library_type(values))
    if _is_infinite(listed):
        raise errors.InputError(f"Column {name!r} holds an infinite value, which JSON does not have.")
    return [None if type(v).__name__ in NULLS or (isinstance(v, float) and v != v) else v for v in listed]


def _check_certain(what: str, values: list[Any], kind: Any) -> None:
    """Refuse what may be integers in a narrow float: 2**24 in 32 bits may have been 2**24 + 1, another entity."""
    bits = float_bits(kind)
    if bits == 64:
        return
    limit = WHOLE_FLOAT_LIMITS[bits]
    numbers = [value for value in values if isinstance(value, float) and math.isfinite(value)]
    beyond = next((number for number in numbers if abs(number) >= limit), None)
    if beyond is not None and all(map(float.is_integer, numbers)):
        raise errors.InputError(
            f"{what} holds {beyond}, a {kind}, which may stand for several integers.",
            hint="Pass integers, or float64 where it is a number and no key.",
        )


def _is_infinite(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_infinite, value))
    return isinstance(value, float) and math.isinf(value)


def _plain(value: Any) -> Any:
    """Return a value of numpy or pandas as JSON holds it."""
    if type(value).__name__ in NULLS:
        return None
    if hasattr(value, "isoformat"):
        if getattr(value, "nanosecond", 0):
            raise TypeError(f"{value} is finer than a microsecond: round it, {ROUNDING}")
        return value.isoformat()
    if hasattr(value, "tolist"):
        listed = instants_as_list(value)
        _check_certain("A list", listed if isinstance(listed, list) else [listed], library_type(value))
        return listed
    raise TypeError(f"{value!r} is of type {type(value).__name__}")


_DTYPES = {int: ("int64", "Int64"), float: ("float64", "Float64"), bool: ("bool", "boolean"), str: (None, "string")}
"""Kind of a column's values -> its dtype without nulls and with them."""


def _frame(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    import pandas as pd

    series = {}
    for name, values in columns.items():
        kinds = set(map(type, values)) - {type(None)}
        kind = kinds.pop() if len(kinds) == 1 else object
        dtype = _DTYPES[kind][None in values] if kind in _DTYPES else object if kind is object else None
        series[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(series, columns=list(columns))
