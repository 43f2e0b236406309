"""A client of the feature server: ``pip install '.[client]'`` in a checkout.

It loads httpx and msgspec, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from featurestore.errors import (
    AuthError,
    CodeMismatchError,
    DamagedRecordError,
    DiskFullError,
    EntityKeyError,
    FeatureStoreError,
    InputError,
    NotFoundError,
    OfflineStoreError,
    OnDemandError,
    OnlineStoreFullError,
    OnlineStoreUnavailableError,
    OutputNameClashError,
    RegistryUnavailableError,
    ServerError,
    ServerUnavailableError,
    ValueTypeError,
)

try:
    import httpx
    import msgspec
except ImportError as error:
    raise ImportError(f"featurestore.client needs {error.name}: pip install '.[client]' in a checkout of it") from None

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")

_ERRORS: Mapping[str, type[FeatureStoreError]] = {
    "not_found": NotFoundError,
    "entity_key": EntityKeyError,
    "value_type": ValueTypeError,
    "output_name_clash": OutputNameClashError,
    "on_demand_failed": OnDemandError,
    "invalid_input": InputError,
    "code_mismatch": CodeMismatchError,
    "online_store_unavailable": OnlineStoreUnavailableError,
    "online_store_full": OnlineStoreFullError,
    "offline_store_unavailable": OfflineStoreError,
    "disk_full": DiskFullError,
    "damaged_record": DamagedRecordError,
    "registry_unavailable": RegistryUnavailableError,
}
"""What the server calls an error -> the class that stands for it in process."""

ROUNDING = "event and created times up and all others down"
_TRY_AGAIN = frozenset({408, 429, 502, 503, 504})
_NOT_THE_REQUEST = frozenset({404, 405})
KEEP_CONNECTION_SECONDS = 30.0
"""Less than the server keeps an idle one, so that it is never closed under a request."""


class OnlineRows(msgspec.Struct, frozen=True):
    """An answer: features in the order asked, one row for each entity row.

    Values are as in JSON: instants RFC 3339 texts, dates ISO 8601, decimals texts, bytes base64; 64-bit integers are
    exact. A value that is not PRESENT is None, or the feature's declared default.
    """

    names: list[str]
    """The columns, as in the answer."""
    rows: list[list[Any]]
    """For each entity row its values."""
    statuses: list[list[str]] = msgspec.field(name="status")
    """For each value PRESENT, NULL_VALUE, NOT_FOUND or OUTSIDE_MAX_AGE."""

    def to_dict(self) -> dict[str, list[Any]]:
        """Return the values by feature, one for each row."""
        return {name: [row[place] for row in self.rows] for place, name in enumerate(self.names)}

    def to_pandas(self) -> pd.DataFrame:
        """Return a frame with a column for each feature; numbers with nulls take pandas' nullable dtypes."""
        import pandas as pd

        return pd.DataFrame({name: _series(values) for name, values in self.to_dict().items()}, columns=self.names)


class FeatureClient:
    """Reads features from a server, and pushes rows to it. Safe across threads; connections are pooled.

    >>> with FeatureClient("https://features.example", token) as client:         # doctest: +SKIP
    ...     rows = client.get_online_features(["carrier_profile:last_delay"], entities={"carrier": ["UA", "AA"]})

    ``token`` goes with every call; ``timeout_s`` (1.0 unless given) bounds a whole read. Errors are those of
    `featurestore.errors` that the same call would raise in process; their ``details`` hold what the server tells, with
    its ``request_id``. ServerUnavailableError: it cannot be reached or did not answer in time; nothing is tried twice.
    InputError: the URL is not one of http or https, or the token holds what none does. No message holds a password or
    a token.
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
        self._closed = False

    def get_online_features(
        self,
        features: Sequence[str] | None = None,
        *,
        feature_service: str | None = None,
        entities: Any,
        request_data: Any = None,
        full_feature_names: bool = False,
    ) -> OnlineRows:
        """Return the newest values of ``view:feature`` references, or of a feature service.

        ``entities`` and ``request_data`` are columns (lists or arrays by name), a list of dicts, or a frame of pandas,
        polars or Arrow.
        """
        asked: dict[str, Any] = {"feature_service": feature_service}
        if features is not None:
            asked["features"] = [features] if isinstance(features, str) else list(features)
        body = {
            **asked,
            "entities": _columns(entities, "entities"),
            "request_data": _columns({} if request_data is None else request_data, "request_data"),
            "full_feature_names": full_feature_names,
        }
        return self._decoded(self._call("POST", "/v1/online-features", body), OnlineRows)

    def push(
        self,
        source: str,
        rows: Any,
        *,
        to: Literal["both", "online", "offline"] = "both",
        timeout_s: float = 30.0,
    ) -> dict[str, Any]:
        """Push rows, given as ``entities`` are, to a push source; return what the server says became of them.

        It is answered when the rows are committed, which waits for others for up to a second: hence its own
        ``timeout_s``. To push again what was not answered is safe.
        """
        body = {"source": source, "rows": _columns(rows, "rows"), "to": to}
        return self._decoded(self._call("POST", "/push", body, timeout_s), dict[str, Any])

    def ready(self) -> bool:
        """Tell whether the server can be reached and its online store answers."""
        try:
            self._call("GET", "/ready")
        except ServerUnavailableError:
            return False
        return True

    def close(self) -> None:
        """Close the connections; one in use is closed when its call ends."""
        self._closed = True
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, body: Any = None, timeout_s: float | None = None) -> bytes:
        """Return the body of a 200; raises for everything else."""
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        deadline, parts = _Deadline(timeout_s), []
        try:
            content = None if body is None else msgspec.json.encode(body, enc_hook=_plain)
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"The request cannot be written as JSON: {error}.") from None
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
            raise ServerUnavailableError(f"{self._shown_url} did not answer within {timeout_s:g} s.") from error
        except httpx.DecodingError as error:
            raise ServerError(f"{self._shown_url} answered what cannot be decoded: {error}.") from error
        except httpx.HTTPError as error:
            raise ServerUnavailableError(f"{self._shown_url} cannot be reached: {error}.") from error
        if response.status_code != 200:
            raise _error(self._shown_url, response, b"".join(parts))
        return b"".join(parts)

    @contextmanager
    def _connection(self) -> Iterator[httpx.Client]:
        """Lend a connection that nobody else uses.

        httpx's own pool, shared by threads, now and then closes a connection under a request: it looks whether an idle
        one is readable just when another thread has sent a request on it and the answer arrives.
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
            raise ServerError(f"{self._shown_url} answered what a feature server would not: {error}.") from None


class _Deadline(dict[str, float]):
    """httpx's timeouts of one request: each phase is given what is left of the whole."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._end = monotonic() + seconds

    def get(self, phase: str, default: Any = None) -> float:
        """Return the seconds left, at least one millisecond: none would mean not to wait at all."""
        return max(self._end - monotonic(), 0.001)

    def has_passed(self) -> bool:
        """Tell whether nothing is left."""
        return monotonic() > self._end


class _Told(msgspec.Struct):
    type: str = ""
    message: str = ""
    details: dict[str, Any] = {}


class _ErrorBody(msgspec.Struct):
    error: _Told


def _error(url: str, response: httpx.Response, body: bytes) -> FeatureStoreError:
    """Return an answer that is no 200 as the error that it stands for."""
    status = response.status_code
    try:
        told = msgspec.json.decode(body, type=_ErrorBody).error
    except (msgspec.DecodeError, UnicodeError):  # not ours: a proxy's page, most likely
        told = _Told(message=f"{url} answered {status} {response.reason_phrase}.")
    error: FeatureStoreError
    if status in (401, 403):
        error = AuthError(told.message, status=status)
    elif told.type in _ERRORS:
        error = _ERRORS[told.type](told.message)
    elif status in _TRY_AGAIN:
        error = ServerUnavailableError(told.message)
    elif 400 <= status < 500 and status not in _NOT_THE_REQUEST:
        error = InputError(told.message)
    else:
        error = ServerError(told.message)
    error.details = {"request_id": response.headers.get("x-request-id"), **told.details, "status": status}
    return error


def _checked_url(url: Any) -> str:
    """Return a URL as messages show it; raises InputError for one that no server has."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError, ValueError):
        parsed = httpx.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError("The URL is not one of a server.", hint="Write it as https://features.example:6566.")
    return str(parsed.copy_with(username=None, password=None)).rstrip("/")


def _checked_token(token: Any) -> str:
    """Return a token without the line end of the file that it was read from; raises InputError, without its text."""
    stripped = token.strip() if isinstance(token, str) else ""
    if not stripped or not stripped.isascii() or not all(map(str.isprintable, stripped)) or " " in stripped:
        raise InputError("The token is none.", hint="Pass it as `fs token create` printed it.")
    return stripped


def _columns(table: Any, what: str) -> dict[str, list[Any]]:
    """Return a dict of columns, a frame of pandas, polars or Arrow, or a list of dicts as lists by column."""
    if hasattr(table, "to_pydict"):  # Arrow
        table = table.to_pydict()
    elif hasattr(table, "iter_columns"):  # polars
        table = {column.name: column for column in table.iter_columns()}
    elif isinstance(table, list | tuple) and all(isinstance(row, Mapping) for row in table):
        names = dict.fromkeys(name for row in table for name in row)
        table = {name: [row.get(name) for row in table] for name in names}
    if not hasattr(table, "items"):
        raise InputError(
            f"{what}= is {type(table).__name__}, not columns.",
            hint='Pass {"carrier": ["UA"]}, a list of dicts, or a frame of pandas, polars or Arrow.',
        )
    return {name: _column(name, values) for name, values in table.items()}


def _column(name: Any, values: Any) -> list[Any]:
    """Return a column as a list; pandas, numpy and Arrow write theirs with plain numbers in it."""
    method = next((found for found in ("to_list", "tolist", "to_pylist") if hasattr(values, found)), None)
    if method is not None:
        listed = _instants(values) if method == "tolist" else getattr(values, method)()
    else:
        listed = None if isinstance(values, str | bytes) or not isinstance(values, Iterable) else list(values)
    if not isinstance(listed, list):
        raise InputError(f"Column {name!r} is {values!r}, not a list of values.")
    if _is_infinite(listed):
        raise InputError(f"Column {name!r} holds an infinite value, which JSON does not have.")
    return listed


def _is_infinite(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_is_infinite, value))
    return isinstance(value, float) and math.isinf(value)


def _plain(value: Any) -> Any:
    """Return what JSON has for a value of numpy or pandas."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    if hasattr(value, "isoformat"):
        if getattr(value, "nanosecond", 0):
            raise TypeError(f"{value} is finer than a microsecond: round it, {ROUNDING}")
        return value.isoformat()
    if hasattr(value, "tolist"):
        return _instants(value)
    raise TypeError(f"{value!r} is of type {type(value).__name__}")


def _instants(values: Any) -> Any:
    """Return numpy's values as Python's; of instants finer than a microsecond numpy itself would make integers."""
    dtype = getattr(values, "dtype", None)
    if getattr(dtype, "kind", "") != "M" or str(dtype) == "datetime64[D]":  # days become dates
        return values.tolist()
    rounded = values.astype("datetime64[us]")
    if ((rounded != values) & (values == values)).any():  # NaT is not itself
        raise InputError(f"Some instants are finer than a microsecond: round them, {ROUNDING}.")
    return rounded.tolist()


_DTYPES: Mapping[type, tuple[str, str]] = {
    int: ("int64", "Int64"),
    float: ("float64", "Float64"),
    bool: ("bool", "boolean"),
}
"""Kind of the values that are there -> dtype without and with nulls among them."""


def _series(values: list[Any]) -> pd.Series:
    import pandas as pd

    kinds = {type(value) for value in values}
    there = kinds - {type(None)}
    kind = next(iter(there)) if len(there) == 1 else object
    if kind in _DTYPES:
        return pd.Series(values, dtype=_DTYPES[kind][len(kinds) - len(there)])
    return pd.Series(values, dtype=None if kind is str else object)
