"""Entities: what features are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import field_validator

from featurestore.definitions.base import Definition, as_dict, check_column_name, check_unique_columns
from featurestore.types import ValueType
from featurestore.types.values import JOIN_KEY_TYPES


class Entity(Definition):
    """What features are about, identified by one or several typed join keys.

    >>> from featurestore.types import String
    >>> route = Entity("route", join_keys={"origin": String, "dest": String}, description="A pair of airports")
    """

    kind: ClassVar[str] = "entity"
    title: ClassVar[str] = "Entity"

    join_keys: dict[str, ValueType]
    """Name of each join key column and its type: Int32, Int64, String, Bool, Date or Bytes."""

    def __init__(
        self,
        name: str,
        join_keys: Mapping[str, ValueType],
        *,
        description: str = "",
        owner: str = "",
        tags: Mapping[str, str] | None = None,
        deprecated: str = "",
    ) -> None:
        self._fill(
            name,
            join_keys=join_keys,
            description=description,
            owner=owner,
            tags=as_dict(tags),
            deprecated=deprecated,
        )

    @field_validator("join_keys")
    @classmethod
    def _check_join_keys(cls, join_keys: dict[str, ValueType]) -> dict[str, ValueType]:
        if not join_keys:
            raise ValueError("an entity needs at least one join key")
        for column, value_type in join_keys.items():
            check_column_name(column)
            if value_type not in JOIN_KEY_TYPES:
                allowed = ", ".join(map(str, JOIN_KEY_TYPES))
                raise ValueError(f"join key {column!r} is {value_type}; join keys are {allowed}")
        check_unique_columns(list(join_keys))
        return join_keys
