"""What a push of a few events knows in memory: the same as the engine finds in the log."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from support.projects import make_workspace

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.engine.interface import JudgedEvents
from featurestore.following.rows import EventEncoder
from featurestore.ingest import events, known_ids, push
from featurestore.ingest.known_ids import KnownIds
from featurestore.maintenance.optimize import optimize
from featurestore.offline import groups
from featurestore.online.records.windowed import encode_event
from featurestore.types import Bool, Bytes, Date, Float32, Float64, Int32, Int64, String, Timestamp
from featurestore.types.times import system_clock, to_datetime
from featurestore.workspace import Workspace

HOUR_US = 3_600_000_000
COLUMNS = {
    "id": String,
    "f": Float64,
    "f32": Float32,
    "i": Int64,
    "i32": Int32,
    "b": Bool,
    "d": Date,
    "at2": Timestamp,
    "t": String,
    "y": Bytes,
}


def view() -> FeatureView:
    batch = ParquetSource("file", "none", "at", "known", allowed_lateness=timedelta(days=400))
    return FeatureView(
        "v",
        entities=[Entity("e", join_keys={"k": Int64, "s": String})],
        source=PushSource("p", batch),
        schema=[Field(name, kind) for name, kind in COLUMNS.items()],
        event_id="id",
        aggregations=[
            *(Aggregation(name, "last", windows=[None]) for name in (*COLUMNS, "at") if name != "id"),
            Aggregation("f", "sum", windows=[timedelta(hours=1)]),
        ],
    )


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setattr(groups, "PAUSE_SECONDS", 0.0)
    with closing(make_workspace(tmp_path, [view()], now_us=system_clock())) as made:
        yield made


def drawn(dice: Random, now_us: int, count: int, *, oldest_hours: int) -> dict[str, list[Any]]:
    def several(make: Any) -> list[Any]:
        return [make() for _ in range(count)]

    return {
        "k": several(lambda: dice.randrange(2)),
        "s": several(lambda: dice.choice("xé")),
        "at": several(lambda: to_datetime(now_us - dice.randrange(oldest_hours) * HOUR_US)),
        "id": several(lambda: dice.choice("abcde")),
        "f": several(lambda: dice.choice([None, 0.0, -0.0, math.nan, math.inf, 0.1])),
        "f32": several(lambda: dice.choice([None, 0.5])),
        "i": several(lambda: dice.choice([None, 2**63 - 1, -1, -2])),
        "i32": several(lambda: dice.choice([None, 7])),
        "b": several(lambda: dice.choice([None, True, False])),
        "d": several(lambda: dice.choice([None, date(1969, 12, 31)])),
        "at2": several(lambda: dice.choice([None, to_datetime(now_us)])),
        "t": several(lambda: dice.choice([None, "", "é"])),
        "y": several(lambda: dice.choice([None, b"\x00\xff"])),
    }


@pytest.mark.parametrize("seed", range(3))
def test_ids_in_memory_judge_as_the_engine_does(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    dice, judged, before = Random(seed), list[bool](), dict[str, list[Any]]()
    monkeypatch.setattr(known_ids, "MOST_KNOWN", 60)
    monkeypatch.setattr(known_ids, "MANY_ROWS", (0, 4, 2_000)[seed])
    real = KnownIds.judge

    def both(self: KnownIds, offline: Any, version: Any, rows: Any, now_us: int) -> JudgedEvents | None:
        found = real(self, offline, version, rows, now_us)
        judged.append(found is not None)
        if found is not None:
            log = workspace.engine.log
            files = [] if version is None else [file.path for file in events.near(version.files, rows)]
            wanted = log.judge(workspace.snapshot().views["v"].view, files, rows)
            for name in ("is_new", "known_as", "conflicts"):
                assert getattr(found, name).tolist() == getattr(wanted, name).tolist(), name
        return found

    monkeypatch.setattr(KnownIds, "judge", both)
    with closing(Workspace(workspace.root, workspace.settings, clock=workspace.clock)) as other:
        for number in range(14):
            workspace.clock.now_us += dice.choice([1, HOUR_US, 30 * HOUR_US])
            rows = drawn(dice, workspace.clock(), dice.randrange(1, 8), oldest_hours=dice.choice([3, 30, 90]))
            if number % 3 == 2:  # again, word by word but for one sign
                rows = before | {
                    "f": [-value if value == 0 and dice.random() < 0.5 else value for value in before["f"]]
                }
            before = rows
            push(dice.choice([workspace, other]), "p", rows, to=dice.choice(["both", "offline"]))
            if number == 9:
                optimize(workspace)
    assert {True, False} == {*judged}


def test_rows_that_were_just_committed_are_those_of_the_log(workspace: Workspace) -> None:
    dice, taken = Random(4), 0
    registered = workspace.snapshot().views["v"]
    encoder = EventEncoder(registered)
    for _ in range(4):
        workspace.clock.now_us += HOUR_US
        push(workspace, "p", drawn(dice, workspace.clock(), 9, oldest_hours=3))
        newest, version = events._newest_rows[registered.table], workspace.offline.current(registered.table)
        assert version is not None
        assert newest.identity == version.identity
        batch = encoder.from_rows(newest.rows)
        assert batch is not None
        after = version.next_sequence - 1 - batch.num_rows
        files = [file.path for file in version.files]
        log = workspace.engine.log.events(registered.view, files, after_sequence=after, batch_rows=1_000)
        wanted = [encode_event(key, encoder.layout, event) for found in log for key, event in encoder.events(found)]
        keys, entity, _ = encoder.numbered(batch)
        entries, event_us = encoder.entries(batch, keys, entity)
        assert entries == wanted
        assert event_us.tolist() == [event.event_us for _, event in encoder.events(batch)]
        taken += len(wanted)
    assert taken > 10
