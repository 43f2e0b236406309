"""How an engine that lists a source's dropped rows must do it, against plain loops.

See `featurestore.testing.engine_project` for the fixture that the suite takes. An engine that does not list them, as
its capabilities say, leaves this suite out.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import groupby
from random import Random
from typing import Any

import pyarrow as pa
import pytest

from featurestore.definitions import Aggregation, Entity, FeatureView, Field, ParquetSource
from featurestore.testing.engine_project import EngineProject, EngineSuite
from featurestore.types import Int64, String

START = datetime(2024, 1, 1, tzinfo=UTC)


def _random_sales(dice: Random) -> list[dict[str, Any]]:
    """Return rows of which some lack a key or a time, and many are the same."""

    def moment(chance: float) -> datetime | None:
        return None if dice.random() < chance else START + timedelta(hours=dice.randrange(3))

    return [
        {
            "shop": dice.choice(["a", "b", None]),
            "town": dice.choice([1, 2, 2, None]),
            "at": moment(0.1),
            "known": moment(0.5),
            "x": number,
        }
        for number in range(120)
    ]


def _reasons(rows: list[dict[str, Any]]) -> dict[int, str]:
    """Return by ``x`` why a row is not taken, from rows in the order of the files and of ``x``."""
    wanted: dict[int, str] = {}
    newest: dict[object, int] = {}
    for row in rows:
        if row["at"] is None:
            wanted[row["x"]] = "no event time"
        elif row["shop"] is None or row["town"] is None:
            wanted[row["x"]] = "null key"
        else:
            same = row["shop"], row["town"], row["at"], row["known"] or row["at"]
            if same in newest:
                wanted[newest[same]] = "duplicate"
            newest[same] = row["x"]
    return wanted


class DroppedRowsConformance(EngineSuite):
    """The suite."""

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("sql", [None, 'SELECT shop, town, "at", known, x FROM sales'])
    def test_each_row_that_is_not_taken_is_listed_once_with_why(
        self, project: EngineProject, seed: int, sql: str | None
    ) -> None:
        rows = _random_sales(Random(seed))
        instant = pa.timestamp("us", tz="UTC")
        schema = pa.schema(
            [("shop", pa.string()), ("town", pa.int64()), ("at", instant), ("known", instant), ("x", pa.int64())]
        )
        for part, first in enumerate(range(0, 120, 50)):
            project.write(f"sales/{part}.parquet", pa.Table.from_pylist(rows[first : first + 50], schema))
        view = FeatureView(
            "sales_view",
            entities=[Entity("shop", {"shop": String}), Entity("town", {"town": Int64})],
            source=ParquetSource("sales", "sales", "at", "known"),
            schema=[Field("x", Int64)],
            sql=sql,
        )
        wanted = _reasons(rows)
        assert project.engine.capabilities.lists_dropped_rows
        found = project.dropped(view, 1_000)
        assert {row["x"]: row["fs_dropped"] for row in found} == wanted
        assert len(found) == len(wanted)
        by_number = {row["x"]: row for row in rows}
        for row in found:
            given = by_number[row["x"]]
            named = (row["shop"], row["town"], row["event_ts"], row["created_ts"])
            assert named == (given["shop"], given["town"], given["at"], given["known"])
        assert len(project.dropped(view, 3)) == len({row["fs_dropped"] for row in project.dropped(view, 3)}) == 3
        reasons = [row["fs_dropped"] for row in found]
        assert reasons == sorted(reasons)
        for reason, of_reason in groupby(found, lambda row: row["fs_dropped"]):
            times = [row["event_ts"] for row in of_reason]
            assert reason == "no event time" or times == sorted(times, reverse=True)
        staged = project.stage(view)
        told = Counter(wanted.values())
        counts = (staged.null_times, staged.null_keys, staged.duplicates)
        assert counts == (told["no event time"], told["null key"], told["duplicate"])

    @pytest.mark.parametrize("event_id", ["id", None])
    def test_of_events_those_without_an_id_and_repeats_are_not_taken(
        self, project: EngineProject, event_id: str | None
    ) -> None:
        """Of one id within a day of the first; without ids every row is an event."""
        hours = [0, 0, 20, 40, 1, 1, 1]
        ids = ["a", "a", "a", "a", "b", None, "c" * 300]
        at = [START + timedelta(hours=hour) for hour in hours]
        rows = {"shop": ["s"] * 6 + [None], "at": at, "id": ids, "x": list(range(7))}
        project.write("s.parquet", pa.table(rows))
        view = FeatureView(
            "v",
            entities=[Entity("shop", {"shop": String})],
            source=ParquetSource("s", "s.parquet", "at"),
            schema=[Field("x", Int64), *([Field("id", String)] if event_id else [])],
            event_id=event_id,
            aggregations=[Aggregation("x", "sum", windows=[timedelta(days=1)])],
        )
        wanted = {1: "duplicate", 2: "duplicate", 5: "no id or a long text"} if event_id else {}
        found = project.dropped(view, 10)
        assert {row["x"]: row["fs_dropped"] for row in found} == wanted | {6: "null key"}

    def test_a_source_that_is_taken_whole_lists_nothing(self, project: EngineProject) -> None:
        project.write("s.parquet", pa.table({"shop": ["a"], "at": [START], "x": [1]}))
        view = FeatureView(
            "v", entities=[Entity("shop", {"shop": String})], source=ParquetSource("s", "s.parquet", "at"),
            schema=[Field("x", Int64)],
        )  # fmt: skip
        assert len(project.dropped(view, 10)) == 0
