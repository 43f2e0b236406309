"""What a served value is, by the same names in process, over HTTP and to Feast's client."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """What an online value is; the names are Feast's."""

    PRESENT = "PRESENT"
    NULL_VALUE = "NULL_VALUE"
    """The newest row's value is null."""
    NOT_FOUND = "NOT_FOUND"
    """There is no row, or it was written before the feature was added."""
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"
    """The newest row is older than the view's ``ttl``."""

    __repr__ = str.__repr__
