"""A set split by time, with an embargo: what trains was known before what tests begins."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from featurestore.errors import InputError
from featurestore.training.joins import JoinedRows
from featurestore.types.times import MICROSECOND, MIN_INSTANT, Instant, duration_text, given_instant, to_rfc3339

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Places = npt.NDArray[np.int64]


def split(
    rows: JoinedRows, at: Instant, embargo: timedelta | None, *, allow_overlap: bool
) -> tuple[Places, Places, int]:
    """Return the places of the rows that train and that test, and how many are neither. See `TrainingSet.split`."""
    import numpy as np

    at_us, times = given_instant(at), rows.frame.times
    embargo_us = _embargo_us(rows, embargo, allow_overlap=allow_overlap)
    train_before_us = max(at_us - embargo_us, MIN_INSTANT)
    trains, tests = times < train_before_us, times >= at_us
    for chosen, what in ((trains, f"before {to_rfc3339(train_before_us)}"), (tests, f"from {to_rfc3339(at_us)} on")):
        if not chosen.any():
            span = (
                f"are from {to_rfc3339(int(times.min()))} to {to_rfc3339(int(times.max()))}"
                if len(times)
                else "are none"
            )
            raise InputError(
                f"No row of the set is {what}: its rows {span}.",
                hint=f"Split at another instant; the embargo is {duration_text(embargo_us)}.",
            )
    return np.flatnonzero(trains), np.flatnonzero(tests), int((~trains & ~tests).sum())


def _embargo_us(rows: JoinedRows, embargo: Any, *, allow_overlap: bool) -> int:
    longest = max(rows.labels, key=lambda label: label.facts.horizon_us, default=None)
    least_us = 0 if longest is None else longest.facts.horizon_us
    if embargo is None:
        return least_us
    if not isinstance(embargo, timedelta) or embargo < timedelta(0):
        raise InputError(f"embargo={embargo!r} is not a length of time.", hint="Pass a timedelta of 0 or more.")
    embargo_us = embargo // MICROSECOND
    if longest is not None and embargo_us < least_us and not allow_overlap:
        raise InputError(
            f"An embargo of {duration_text(embargo_us)} is shorter than the horizon of the label "
            f"{longest.facts.name!r}, {duration_text(least_us)}: rows would train with labels that were known only "
            "after the test begins.",
            hint="Leave embargo out, or pass allow_overlap=True if that is what you want to see.",
        )
    return embargo_us
