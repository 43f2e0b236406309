"""Records that are made of a log's events, some entities at a time."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.engine.interface import EVENT_AT, KNOWN_AT, NUMBER
from featurestore.following import rows
from featurestore.online.records.reading import ViewLayout
from featurestore.types import Int64

VIEW = FeatureView(
    "v",
    entities=[Entity("e", join_keys={"k": Int64})],
    source=ParquetSource("s", "s", "at"),
    schema=[Field("f", Int64)],
    aggregations=[Aggregation("f", "sum", windows=[timedelta(minutes=12), None])],
)


def test_an_entity_with_nearly_all_events_is_not_put_together_with_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: Any = SimpleNamespace(view=VIEW, layout=ViewLayout("p", "v", 1, (("k", Int64),), (), None))
    encoder = rows.EventEncoder(registered)
    keys = np.repeat(np.arange(6), [1, 3, 600, 7, 25, 2])
    at = np.arange(len(keys)) * 1_000_000
    events = {"k": keys, EVENT_AT: at, KNOWN_AT: at, NUMBER: at, "v0": at // 8}
    whole = list(encoder.placed([pa.record_batch(events)], 9, 10**12))
    monkeypatch.setattr(rows, "PLACED_ROWS", 10)
    looked_at, begins = list[int](), rows.EventEncoder._begins
    monkeypatch.setattr(
        rows.EventEncoder, "_begins", lambda own, some: looked_at.append(some.num_rows) or begins(own, some)
    )
    cut = [{name: column[start : start + 4] for name, column in events.items()} for start in range(0, len(keys), 4)]
    assert list(encoder.placed(map(pa.record_batch, cut), 9, 10**12)) == whole
    assert sum(looked_at) < 5 * len(keys)
