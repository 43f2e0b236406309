"""What a client remembers of its requests, and the values of a prediction as lists."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import Any, NamedTuple

from featurestore import errors
from featurestore.tables import NULLS, as_list, check_lengths

MOST_REQUESTS = 10_000
"""A client remembers so many of its requests."""


class Remembered(NamedTuple):
    """One answer to a request for a feature service."""

    service: str
    rows: int
    is_kept: bool | None
    """Whether the served log keeps it; None where the server did not say."""


class Requests:
    """The newest answers by request id. Safe across threads."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Remembered] = OrderedDict()
        self._lock = Lock()

    def remember(self, request_id: str, answer: Remembered) -> None:
        """Remember an answer, and forget the oldest where there are too many."""
        with self._lock:
            self._known[request_id] = answer
            if len(self._known) > MOST_REQUESTS:
                self._known.popitem(last=False)

    def find(self, request_id: str) -> Remembered | None:
        """Return an answer; None for an unknown one."""
        with self._lock:
            return self._known.get(request_id)


def predicted(values: Mapping[str, Any], rows: int | None) -> dict[str, list[Any]]:
    """Return predictions as lists, single values as lists of one; raises InputError for another number than ``rows``.

    ``rows`` is None where nobody knows how many the request had.
    """
    if not isinstance(values, Mapping):
        raise errors.InputError(
            f"values is a {type(values).__name__}.", hint='Pass predictions by name: {"delay": [12.5]}.'
        )
    columns = {str(name): listed(str(name), [value] if _is_single(value) else value) for name, value in values.items()}
    count = check_lengths(columns, "values")
    if rows is not None and columns and count != rows:
        raise errors.InputError(
            f"There are {count} predictions, and the request had {rows} entity rows.",
            hint="Pass one for each row, None where there is none.",
        )
    return columns


def listed(name: str, values: Any) -> list[Any]:
    """Return the values of a prediction as JSON has them; raises InputError for what is no number, text or boolean.

    NaN and infinities are none: JSON has neither, and one of them must not lose the others.
    """
    return [_plain(name, value) for value in as_list(values)]


def _plain(name: str, value: Any) -> Any:
    if type(value).__name__ in NULLS:
        return None
    single = value.item() if getattr(value, "ndim", None) == 0 else value  # of numpy, where a list holds its values
    if single is None or type(single) in (bool, int, str):
        return single
    if isinstance(single, float):
        return float(single) if math.isfinite(single) else None
    raise errors.InputError(
        f"A value of the prediction {name!r} is a {type(value).__name__}.",
        hint="Pass numbers, texts or booleans, and None where there is none.",
    )


def _is_single(value: Any) -> bool:
    """Tell whether something is one value: numpy's and pandas' single values have a dimension of 0 or none."""
    return isinstance(value, str | bytes) or getattr(value, "ndim", None) == 0 or not hasattr(value, "__len__")
