"""Sources: where values come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

from pydantic import field_validator, model_validator

from featurestore.definitions.base import Definition, Field, Schema, as_dict, as_tuple


class ParquetSource(Definition):
    """Parquet data: a file, a glob, or a folder (read with all its sub-folders).

    ``timestamp_field`` is when the event happened; ``created_timestamp_field``, optional, when it became known.
    Relative paths are relative to the feature repo. Folders called ``name=value`` (hive partitions) below the
    folder, or below the last folder before a glob's first wildcard, are String columns; a column of that name in the
    files must hold the same values. The names of that folder and of those above it mean nothing.
    ``allowed_lateness`` is how long after newer rows a row may still arrive, by its created time, and be found by an
    incremental materialization.
    """

    kind: ClassVar[str] = "source"
    title: ClassVar[str] = "ParquetSource"

    path: str
    timestamp_field: str
    created_timestamp_field: str | None = None
    allowed_lateness: timedelta = timedelta(days=1)

    def __init__(
        self,
        name: str,
        path: str | Path,
        timestamp_field: str,
        created_timestamp_field: str | None = None,
        *,
        allowed_lateness: timedelta = timedelta(days=1),
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        self._fill(
            name,
            path=str(path) if isinstance(path, Path) else path,
            timestamp_field=timestamp_field,
            created_timestamp_field=created_timestamp_field,
            allowed_lateness=allowed_lateness,
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )

    @field_validator("path", "timestamp_field", "created_timestamp_field")
    @classmethod
    def _check_not_empty(cls, text: str | None) -> str | None:
        if text is not None and (not text or "\0" in text):
            raise ValueError("must not be empty or hold a NUL character")
        return text

    @field_validator("allowed_lateness")
    @classmethod
    def _check_lateness(cls, lateness: timedelta) -> timedelta:
        if lateness < timedelta(0):
            raise ValueError("must not be negative")
        return lateness

    @model_validator(mode="after")
    def _check_times_differ(self) -> ParquetSource:
        if self.timestamp_field == self.created_timestamp_field:
            raise ValueError("timestamp_field and created_timestamp_field must be two columns")
        return self

    @property
    def batch_source(self) -> ParquetSource:
        """The source itself; a PushSource answers its batch source."""
        return self


class PushSource(Definition):
    """A source whose rows are pushed as they happen, and which a batch source repeats in full later."""

    kind: ClassVar[str] = "push_source"
    title: ClassVar[str] = "PushSource"

    batch_source: ParquetSource

    def __init__(
        self,
        name: str,
        batch_source: ParquetSource,
        *,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        self._fill(
            name,
            batch_source=batch_source,
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )


class RequestSource(Definition):
    """Values that the caller brings: columns of the entity frame, ``request_data`` of an online read."""

    kind: ClassVar[str] = "request_source"
    title: ClassVar[str] = "RequestSource"

    fields: Schema

    def __init__(
        self,
        name: str,
        schema: Sequence[Field],
        *,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        self._fill(
            name,
            fields=as_tuple(schema),
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )
