"""Rows that fail are set aside, and the others committed; what is set aside is released once, or dropped."""

from __future__ import annotations

import html
import math
import re
import shutil
import threading
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pyarrow.parquet as pq
import pytest
from featurestore_registry.auth import Role, create_token
from support.catalog_server import serving_catalog
from support.command_line import CommandLine
from support.disks import small_files
from support.forked_fs import forked_fs
from support.quarantined import HOUR, World
from support.registry_server import serving_registry

from featurestore import FeatureStore
from featurestore.engine.checks import ROW_ID
from featurestore.errors import AuthError, DamagedFileError, InputError, MaterializationError, NotFoundError
from featurestore.ledger.leases import holding
from featurestore.ledger.runs import all_runs
from featurestore.ledger.watermarks import read_watermark
from featurestore.maintenance.doctor import examine
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.verify import verify
from featurestore.materialization import materialize
from featurestore.offline.interface import TableId
from featurestore.quarantine.files import blobs_of, reader_of, write
from featurestore.quarantine.held import held_rows, known_ids
from featurestore.server.read.snapshots import SnapshotKeeper
from featurestore.server.watch.metrics import Metrics
from featurestore.steps import CRASH_POINTS
from featurestore.training import TrainingSetWarning
from featurestore.types.columns import EVENT
from featurestore.types.times import to_instant

NAN = math.nan
BAD = [4.0, 9.0, None, NAN, 2.0]
"""Three of them fail."""


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path / "taxi")
    made.apply()
    return made


def online(world: World, *ids: int) -> list[Any]:
    answer = world.store.get_online_features(["ratings:rating"], {"driver_id": list(ids)})
    return list(answer.to_dict()["rating"])


def seen_at(world: World, at: Any, driver_id: int, feature: str = "ratings:rating") -> Any:
    """Return what a training set has at an instant."""
    world.store.materialize_incremental()  # so that it is covered
    frame = pd.DataFrame({"driver_id": [driver_id], "event_timestamp": [at]})
    with warnings.catch_warnings(action="ignore", category=TrainingSetWarning):
        training = world.store.get_historical_features(frame, [feature])
        assert training.certificate.views[0].from_future in (0, None)
        return training.to_arrow().column(feature.partition(":")[2]).to_pylist()[0]


def test_rows_that_fail_are_set_aside_and_the_others_committed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.rides("1", BAD, city=["Bonn", "Berlin", "Bonn", None, "Köln"])
    page = CommandLine(world.root, capsys)("materialize")
    assert "ratings: set aside 3 rows: `fs quarantine list ratings` shows why" in page
    assert "not as expected: rating: Between(1.0, 5.0): 2 of 5 rows" in page
    assert "set aside" in page.splitlines()[0]
    assert world.log()["driver_id"].to_pylist() == [0, 4]
    assert world.log()["rating"].to_pylist() == [4.0, 2.0]
    assert online(world, 0, 1, 2, 3, 4) == [4.0, None, None, None, 2.0]
    held = world.store.quarantined("ratings")
    found = {row["driver_id"]: row["fs_failed"] for row in held.to_pylist()}
    assert found == {
        1: ["rating: Between(1.0, 5.0)", "city: OneOf(['Bonn', 'Köln'])"],
        2: ["rating: NotNull()"],
        3: ["rating: Between(1.0, 5.0)"],
    }
    assert held.column_names[:4] == ["fs_row_id", "fs_run", "fs_found_ts", "fs_failed"]
    assert held["phone"].to_pylist() == ["+49 1", "+49 2", "+49 3"]  # whoever may read the data may see them
    (run,) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    assert (run.read, run.appended, run.quarantined) == (5, 2, 3)
    assert held["fs_run"].to_pylist() == [run.run_id] * 3
    workspace, event_us = world.store.workspace, to_instant(world.at(-0.5))
    table = workspace.snapshot().views["ratings"].table
    for first_us, last_us, rows in ((-1, 0, 3), (0, 1, 3), (-2, -1, 0), (1, 2, 0)):  # both ends belong to the span
        found = known_ids(reader_of(workspace.offline, table), table, event_us + first_us, event_us + last_us)
        assert found.num_rows == rows
    staging = world.store.workspace.offline.staging(world.store.workspace.snapshot().views["ratings"].table)
    assert list(staging.glob("*.parquet")) == []


@pytest.mark.uncounted
def test_nothing_is_set_aside_twice_and_nothing_that_was_comes_again(world: World) -> None:
    world.rides("1", BAD)
    first = world.run()
    assert (first.appended, first.quarantined) == (2, 3)
    start = to_instant(world.at(-5))
    for rebuild in (False, True):
        (again,) = materialize(world.store.workspace, start, world.clock(), rebuild=rebuild, confirm=lambda *_: True)
        assert (again.read, again.appended, again.unchanged, again.quarantined) == (5, 0, 5, 0)
        assert (again.withdrawn, again.unmet) == (0, ())
    ids = world.store.quarantined("ratings")
    by_driver = dict(zip(ids["driver_id"].to_pylist(), ids["fs_row_id"].to_pylist(), strict=True))
    world.store.release_quarantined("ratings", rows=by_driver[1][:10], reason="it was so")
    world.store.drop_quarantined("ratings", rows=[by_driver[2]], reason="nonsense")
    for rebuild in (False, True):
        (again,) = materialize(world.store.workspace, start, world.clock(), rebuild=rebuild, confirm=lambda *_: True)
        assert (again.appended, again.unchanged, again.quarantined, again.withdrawn) == (0, 5, 0, 0)
    assert sorted(world.log()["driver_id"].to_pylist()) == [0, 1, 4]
    assert world.held() == [3]
    world.rides("2", [5.0], first=2)  # what is correct is taken
    assert world.run().appended == 1


def test_a_dry_run_sets_nothing_aside(world: World) -> None:
    world.rides("1", BAD)
    (dry,) = world.store.materialize_incremental(dry_run=True)
    assert (dry.appended, dry.quarantined) == (2, 3)
    assert world.held() == []
    assert world.run().quarantined == 3


@pytest.mark.uncounted
def test_rules_of_a_whole_run_block_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = World(tmp_path / "taxi", more="Rows(at_least=4), Share('rating > 8', at_most=0.4)")
    world.apply()
    world.rides("1", BAD[:3])
    with pytest.raises(MaterializationError, match="nothing was committed: Rows"):
        world.store.materialize_incremental()
    assert (world.log().num_rows, world.held()) == (0, [])
    (blocked, *_) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    assert blocked.quarantined == 0
    assert "accepted all the same: a quiet night" in CommandLine(world.root, capsys)(
        "accept", blocked.run_id, "--reason", "a quiet night"
    )
    assert (world.log()["driver_id"].to_pylist(), world.held()) == ([0], [1, 2])
    world.clock.advance(HOUR)
    world.rides("2", [9.0, 9.0, 9.0, 1.0], first=10)
    with pytest.raises(MaterializationError, match="Share"):  # of all rows, also of those that would be set aside
        world.store.materialize_incremental()
    world.rides("2", [9.0, 2.0, 3.0, 1.0], first=10)
    assert (world.run().appended, sorted(world.held())) == (3, [1, 2, 10])
    # Rows that are read again are not judged again: one would be too few.
    (again,) = materialize(world.store.workspace, to_instant(world.at(-1.75)), world.clock(), rebuild=False)
    assert (again.unchanged, again.unmet) == (4, ())


@pytest.mark.uncounted
def test_released_rows_are_known_from_then_on(world: World) -> None:
    world.rides("1", BAD)
    event = world.at(-0.5)
    world.run()
    world.clock.advance(5 * HOUR)
    released = world.at(0)
    done = world.store.release_quarantined("ratings", run=world.store.quarantined("ratings")["fs_run"][0].as_py(),
                                           reason="a new scale")  # fmt: skip
    assert (done.kind, done.appended, done.published.written) == ("release", 3, 3)
    assert "a new scale (" in done.accepted
    assert online(world, 0, 1, 4) == [4.0, 9.0, 2.0]
    world.clock.advance(HOUR)
    assert seen_at(world, released - timedelta(microseconds=1), 1) is None
    assert seen_at(world, released, 1) == 9.0
    assert seen_at(world, event, 0) == 4.0
    log = {row["driver_id"]: row for row in world.log().to_pylist()}
    assert {log[driver]["created_ts"] for driver in (1, 2, 3)} == {released}
    assert {log[driver]["event_ts"] for driver in (1, 2, 3)} == {event}
    assert {row["driver_id"]: row["fs_origin"] for row in log.values()}[1] == "release"
    assert math.isnan(log[3]["rating"])
    assert world.held() == []
    with pytest.raises(NotFoundError, match="No rows of ratings"):
        world.store.release_quarantined("ratings", all=True, reason="again")
    assert world.run().appended == 0


@pytest.mark.uncounted
def test_no_row_is_left_to_commit(world: World) -> None:
    world.rides("1", [9.0, None])
    done = world.run()
    assert (done.state, done.appended, done.quarantined) == ("done", 0, 2)
    assert world.log().num_rows == 0
    again = world.run()
    assert (again.appended, again.quarantined, again.unchanged) == (0, 0, 2)
    watermark = read_watermark(world.store.workspace.ledger, world.store.workspace.snapshot().views["ratings"])
    assert watermark.end_us == to_instant(world.at(-1))
    world.store.release_quarantined("ratings", all=True, reason="right")
    assert world.log()["driver_id"].to_pylist() == [0, 1]
    assert online(world, 0) == [9.0]


def test_null_keys_are_dropped_as_ever(world: World) -> None:
    world.rides("1", BAD, driver_id=[None, None, 2, 3, 4])
    done = world.run()
    assert (done.null_keys, done.appended, done.quarantined) == (2, 1, 2)


def test_texts_of_all_kinds_are_shown_and_hurt_nobody(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    evil = ["<script>alert(1)</script>", "'; DROP TABLE x; --", "\x1b[31mred\x07", "a\u202eb", "x" * 5_000]
    world.rides("1", [4.0] * 5, city=evil)
    assert world.run().quarantined == 5
    fs = CommandLine(world.root, capsys)
    page = fs("quarantine", "list", "ratings", "--rows")
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "<script>" in page
    assert world.store.quarantined("ratings")["city"].to_pylist() == evil
    with pytest.raises(NotFoundError):
        world.store.release_quarantined("ratings", rows="' OR 1=1 --", reason="<b>x</b>\x1b[31m")
    world.store.drop_quarantined("ratings", all=True, reason="<b>x</b>\x1b[31m")
    told = fs("quarantine", "list")
    assert "\x1b" not in told
    assert "<b>x</b>" in told


def test_what_the_command_shows_and_does(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fs = CommandLine(world.root, capsys)
    assert "No rows are set aside." in fs("quarantine", "list")
    at = [world.at(-hours) for hours in range(1, 6)]
    world.rides("1", BAD, driver_id=[1, 1, 1, 2, 3], at=at, known=at, phone=["49", "+1", "+2", "+3", "+4"])
    world.run()
    (run,) = {row["fs_run"] for row in world.store.quarantined("ratings").to_pylist()}
    page = fs("quarantine", "list", "ratings", "--run", run)
    assert run in page
    assert "rating: Between(1.0, 5.0) (2)" in page
    document = fs.json("quarantine", "list")
    (held,) = document["held"]
    assert (held["rows"], held["entities"], held["run"], held["is_applied"]) == (4, 2, run, True)
    assert held["rules"] == {"rating: Between(1.0, 5.0)": 2, r"phone: Matches('\\+.*')": 1, "rating: NotNull()": 1}
    rows = fs.json("quarantine", "list", "ratings", "--rows")
    assert len(rows) == 4
    assert all("phone" not in row for row in rows)
    shown = fs("quarantine", "list", "ratings", "--rows")
    assert "Tagged personal and not shown: phone." in shown
    assert "+49" not in shown
    done = fs.json("quarantine", "drop", "ratings", "--row", rows[0]["fs_row_id"], "--reason", "no such ride")
    assert done == {"view": "ratings", "generation": 1, "rows": 1}
    assert "released: all right (" in fs("quarantine", "release", "ratings", "--run", run, "--reason", "all right")
    told = fs("quarantine", "list")
    assert "1 row was dropped" in told
    assert "no such ride" in told
    assert "3 rows were released" in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"all": True, "reason": " "}, "needs a reason"),
        ({"reason": "x"}, "Say which rows"),
        ({"all": True, "run": "abc", "reason": "x"}, "Say which rows"),
        ({"rows": ["abc"], "reason": "x"}, "too short"),
        ({"rows": ["abcdef0123"], "reason": "x"}, "No row 'abcdef0123' is held"),
        ({"run": "0123456789abcdef", "reason": "x"}, "No row of run '0123456789abcdef'"),
    ],
)
@pytest.mark.parametrize("does", ["release_quarantined", "drop_quarantined"])
def test_bad_input_changes_nothing(world: World, arguments: dict[str, Any], told: str, does: str) -> None:
    world.rides("1", BAD)
    world.run()
    with pytest.raises((InputError, NotFoundError), match=told):
        getattr(world.store, does)("ratings", **arguments)
    assert len(world.held()) == 3
    with pytest.raises(NotFoundError, match="no feature view 'rating'"):
        getattr(world.store, does)("rating", all=True, reason="x")


def test_pushes_are_refused_row_by_row(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", windows=True)
    world.apply()
    rows = {"driver_id": [1, 2], "at": [world.at(-1)] * 2, "km": [5.0, -1.0], "id": ["a", "b"]}
    with pytest.raises(InputError, match=r"column 'km', row 1: -1.0 is not as expected by 'km'"):
        world.store.push("trips", rows)
    assert world.log("km").num_rows == 0
    assert world.held("km") == []


def test_events_are_set_aside_and_released_too(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", windows=True)
    world.apply()
    world.trips("trips/1", [1.0, -2.0, 4.0, -8.0], ["a", "b", "c", "d"])
    world.trips("plain/1", [1.0, -2.0, -2.0, -2.0])
    done = {run.view: run for run in world.store.materialize_incremental()}
    assert (done["km"].appended, done["km"].quarantined) == (2, 2)
    assert (done["loose"].appended, done["loose"].quarantined) == (1, 3)  # equal events are events of their own
    world.clock.advance(HOUR)
    span = to_instant(world.at(-5)), world.clock()
    for rebuild in (False, True):
        again = materialize(world.store.workspace, *span, ["km", "loose"], rebuild=rebuild, confirm=lambda *_: True)
        assert [(run.appended, run.quarantined, run.withdrawn) for run in again] == [(0, 0, 0)] * 2
    features = ["km:km_sum_1d", "km:count_all", "loose:km_sum_1d", "loose:count_all"]

    def now() -> list[Any]:
        answer = world.store.get_online_features(features, {"driver_id": [1]}, full_feature_names=True).to_dict()
        return [answer[name.replace(":", "__")][0] for name in features]

    assert now() == [5.0, 2, 1.0, 1]
    before = world.at(0) - timedelta(microseconds=1)
    ids = world.store.quarantined("loose")["fs_row_id"].to_pylist()
    assert [each.partition("-")[2] for each in ids] == ["", "2", "3"]
    world.store.release_quarantined("loose", rows=[ids[0], ids[2]], reason="on the way back")
    world.store.release_quarantined("km", all=True, reason="on the way back")
    assert now() == [-5.0, 4, -3.0, 3]
    world.clock.advance(HOUR)
    assert seen_at(world, before, 1, "km:km_sum_1d") == 5.0
    assert seen_at(world, world.at(0), 1, "km:km_sum_1d") == -5.0
    for rebuild in (False, True):
        again = materialize(world.store.workspace, *span, ["km", "loose"], rebuild=rebuild, confirm=lambda *_: True)
        assert [(run.appended, run.quarantined, run.withdrawn) for run in again] == [(0, 0, 0)] * 2
    assert now() == [-5.0, 4, -3.0, 3]
    world.trips("trips/2", [-16.0], ["e"])
    world.run("km", "loose")
    assert world.store.quarantined("km")["id"].to_pylist() == ["e"]
    world.store.push("trips", {"driver_id": [1], "at": [world.at(-1)], "km": [3.0], "id": ["e"]})  # the correction
    assert world.store.release_quarantined("km", all=True, reason="too late").appended == 0
    assert now()[:2] == [-2.0, 5]
    assert world.held("km") == []


def test_another_generation_takes_no_rows_of_the_one_before(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rides("1", BAD)
    world.run()
    text = (world.root / "features.py").read_text()
    world.define(text.replace('Field("phone", String, expect=[Matches(r"\\+.*")]', 'Field("phone2", String'))
    world.define(text.replace('        Field("city", String, expect=[OneOf(["Bonn", "Köln"])]),\n', ""))
    fs = CommandLine(world.root, capsys)
    assert "3 rows of its quarantine can then only be dropped" in fs("plan")
    world.apply(allow_breaking=True)
    assert "generation 1 is not applied any more" in fs("quarantine", "list")
    with pytest.raises(NotFoundError, match="Generation 1 holds some"):
        world.store.release_quarantined("ratings", all=True, reason="x")
    refused = fs("quarantine", "release", "ratings", "--generation", "1", "--all", "--reason", "x", expect=1)
    assert "cannot be released" in refused
    assert world.run().quarantined == 3  # read again by the new definition
    assert [each["generation"] for each in fs.json("quarantine", "list")["held"]] == [1, 2]
    assert world.store.quarantined("ratings", 1)["city"].to_pylist() == ["Bonn"] * 3
    fs("quarantine", "drop", "ratings", "--generation", "1", "--all", "--reason", "x")
    assert [each["generation"] for each in fs.json("quarantine", "list")["held"]] == [2]
    assert world.log().num_rows == 2


@pytest.mark.uncounted
def test_a_view_that_no_longer_sets_aside_leaves_held_rows_alone(world: World) -> None:
    world.rides("1", BAD)
    world.run()
    world.define((world.root / "features.py").read_text().replace('"quarantine"', '"warn"'))
    world.apply()
    (again,) = materialize(world.store.workspace, to_instant(world.at(-5)), world.clock(), rebuild=False)
    assert (again.appended, again.unchanged) == (0, 5)
    world.store.release_quarantined("ratings", all=True, reason="x")
    assert sorted(world.log()["driver_id"].to_pylist()) == [0, 1, 2, 3, 4]


SCRIPT = """
import sys
from pathlib import Path
from support.quarantined import World
world = World(Path("taxi"), start=START)
"""
RUNS = {
    "quarantine.aside": "world.store.materialize_incremental()",
    "offline.committed": "world.store.materialize_incremental()",
    "quarantine.releasing": "world.store.release_quarantined('ratings', all=True, reason='x')",
    "quarantine.in_log": "world.store.release_quarantined('ratings', all=True, reason='x')",
    "quarantine.settled": "world.store.release_quarantined('ratings', all=True, reason='x')",
    "quarantine.dropped": "world.store.drop_quarantined('ratings', all=True, reason='x')",
}


def test_every_crash_point_is_walked() -> None:
    assert {point for point in CRASH_POINTS if point.startswith("quarantine.")} <= set(RUNS)


@pytest.mark.uncounted
@pytest.mark.parametrize("then", ["the same", "a run"])
@pytest.mark.parametrize("point", sorted(RUNS))
def test_what_died_is_finished_by_the_next(tmp_path: Path, point: str, then: str) -> None:
    world = World(tmp_path / "taxi")
    world.apply()
    world.rides("1", BAD)
    sets_aside = "materialize" in RUNS[point]
    if not sets_aside:
        world.run()
    world.store.close()
    code = SCRIPT.replace("START", str(world.clock())) + RUNS[point]
    ((status, said),) = forked_fs().run_code(code, tmp_path, [{"FS_CRASH_AT": point}])
    assert status == 137, said
    world.clock.advance(HOUR)
    if then == "a run" or sets_aside:
        world.run()
    else:
        try:
            exec(RUNS[point], {"world": world})
        except NotFoundError:
            assert point in ("quarantine.settled", "quarantine.dropped")  # which are over
    drivers = world.log()["driver_id"].to_pylist()
    if sets_aside:
        assert (drivers, world.held()) == ([0, 4], [1, 2, 3])
        assert online(world, 0, 1) == [4.0, None]
    elif point == "quarantine.dropped":
        assert (drivers, world.held()) == ([0, 4], [])
    else:
        assert (drivers, world.held()) == ([0, 4, 1, 2, 3], [])
        assert online(world, 0, 1) == [4.0, 9.0]
    (again,) = materialize(world.store.workspace, to_instant(world.at(-9)), world.clock(), rebuild=False)
    assert (again.appended, again.quarantined) == (0, 0)


@pytest.mark.uncounted
@pytest.mark.parametrize("again", [None, "offline.files_moved", "offline.committed", "quarantine.in_log"])
def test_a_release_that_a_later_run_finishes_is_known_from_then_on(tmp_path: Path, again: str | None) -> None:
    world = World(tmp_path / "taxi")
    world.apply()
    world.rides("1", BAD)
    world.run()
    world.store.close()

    def killed(code: str, point: str) -> None:
        code = SCRIPT.replace("START", str(world.clock())) + code
        ((status, said),) = forked_fs().run_code(code, tmp_path, [{"FS_CRASH_AT": point}])
        assert status == 137, said

    killed(RUNS["quarantine.releasing"], "quarantine.releasing")
    folder = world.root / "data/offline/taxi/_quarantine.ratings.1"
    (begun,) = folder.glob("releasing.*")
    content = begun.read_bytes()
    world.clock.advance(48 * HOUR)
    committed = world.at(0)
    if again is not None:
        killed("world.store.materialize_incremental()", again)
        world.clock.advance(HOUR)
    if again == "offline.files_moved":  # nothing is in the log yet, and what was begun may be there still
        begun.write_bytes(content)
        committed = world.at(0)
    world.run()
    log = world.log().to_pylist()
    assert [row["driver_id"] for row in log] == [0, 4, 1, 2, 3]
    assert {row["created_ts"] for row in log if row["fs_origin"] == "release"} == {committed}
    assert [path.name.split(".")[0] for path in sorted(folder.iterdir())] == ["held", "released"]
    assert online(world, 0, 1) == [4.0, 9.0]
    assert world.run().appended == 0
    assert seen_at(world, committed - timedelta(microseconds=1), 1) is None
    assert seen_at(world, committed, 1) == 9.0


def test_of_what_is_asked_for_only_what_another_release_has_drops_out(world: World, tmp_path: Path) -> None:
    world.rides("1", [9.0] * 4)
    run = world.run().run_id
    held = world.store.quarantined("ratings")
    ids = dict(zip(held["driver_id"].to_pylist(), held["fs_row_id"].to_pylist(), strict=True))
    world.store.close()
    code = SCRIPT.replace("START", str(world.clock()))
    code += f"world.store.release_quarantined('ratings', rows={ids[0]!r}, reason='theirs')"
    ((status, said),) = forked_fs().run_code(code, tmp_path, [{"FS_CRASH_AT": "quarantine.releasing"}])
    assert status == 137, said
    release, drop = world.store.release_quarantined, world.store.drop_quarantined
    for asked in ({"rows": [ids[1], "abcdef0123"]}, {"run": "0123456789abcdef"}):
        for decide in (release, drop):
            with pytest.raises(NotFoundError, match=r"'abcdef0123' is held|run '0123456789abcdef' is held"):
                decide("ratings", reason="x", **asked)
    assert (world.log().num_rows, sorted(world.held())) == (0, [1, 2, 3])
    done = release("ratings", rows=[ids[0], ids[1][:12]], reason="ours")
    assert (done.appended, done.accepted.partition(" (")[0]) == (1, "ours")
    assert world.log()["driver_id"].to_pylist() == [0, 1]
    assert release("ratings", rows=ids[2], reason="at the same instant").appended == 1
    assert world.log()["driver_id"].to_pylist() == [0, 1, 2]
    assert len({row["created_ts"] for row in world.log().to_pylist()}) == 3
    assert release("ratings", run=run, reason="what is left").appended == 1


def test_two_releases_at_once_commit_each_row_once(world: World, tmp_path: Path) -> None:
    world.rides("1", [9.0] * 40)
    world.run()
    world.store.close()
    code = SCRIPT.replace("START", str(world.clock())) + (
        "try:\n    print(world.store.release_quarantined('ratings', all=True, reason='x').appended)\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    ended = forked_fs().run_code(code, tmp_path, [{}] * 3)
    assert all(status == 0 for status, _ in ended), ended
    assert sorted(said.split()[-1] for _, said in ended)[-1] in ("40", "NotFoundError")
    assert sum(int(said) for _, said in ended if said.strip().isdigit()) == 40
    assert not [said for _, said in ended if said.strip() == "0"], "who came second is told"
    assert [run.kind for run in all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())].count(
        "release"
    ) == 1
    assert sorted(world.log()["driver_id"].to_pylist()) == list(range(40))


def test_a_full_disk_changes_nothing(world: World) -> None:
    world.rides("1", [9.0, *[3.0] * 20_000])
    with small_files(2_000), pytest.raises(MaterializationError, match=r"(?i)space|disk|large"):
        world.store.materialize_incremental()
    assert (world.log().num_rows, world.held()) == (0, [])
    assert world.run().appended == 20_000
    assert world.held() == [0]


@pytest.mark.parametrize("how", ["release", "drop"])
def test_who_decides_second_is_told_of_the_first(world: World, how: str) -> None:
    """The second has looked at what is held, and waits for the first."""
    world.rides("1", BAD)
    world.run()
    decide = getattr(world.store, f"{how}_quarantined")
    told, table = list[str](), TableId("taxi", "ratings", 1)

    def second() -> None:
        with FeatureStore(world.root, clock=world.clock) as store, pytest.raises(NotFoundError) as raised:
            getattr(store, f"{how}_quarantined")("ratings", all=True, reason="second")
        told.append(str(raised.value))

    ledger = world.store.workspace.ledger
    with holding(ledger, "taxi", "ratings", holder="me", clock=world.clock):
        waiting = threading.Thread(target=second)
        waiting.start()
        time.sleep(1)
        blobs = blobs_of(world.store.workspace.offline, table)
        rows = held_rows(blobs, table, [ROW_ID, EVENT])[0].rows
        write(blobs, table, "dropped", rows, at_us=world.clock(), of="first", by="ann", reason="the first")
    waiting.join()
    assert "rows of ratings were dropped at" in told[0]
    assert "by ann: the first" in told[0]
    assert [run.kind for run in all_runs(ledger, "taxi", now_us=world.clock())] == ["incremental"]
    with pytest.raises(NotFoundError):
        decide("ratings", all=True, reason="third")


def test_held_files_that_are_gone_are_named_until_their_rows_are_read_again(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    fs = CommandLine(world.root, capsys)
    world.rides("1", BAD)
    world.run()
    world.rides("2", [9.0, 3.0], first=10)
    world.run()
    world.store.drop_quarantined(
        "ratings", rows=[world.store.quarantined("ratings")["fs_row_id"][0].as_py()], reason="x"
    )
    assert "missing" not in fs("quarantine", "list", "ratings")
    (folder,) = (world.root / "data/offline/taxi").glob("*quarantine*")
    first, *_ = sorted(folder.rglob("held.*.parquet"), key=lambda file: int(file.name.split(".")[1]))
    content = first.read_bytes()
    first.unlink()
    told = "2 rows are missing from the quarantine of ratings (generation 1): the registry counted them"

    def is_told() -> list[bool]:
        (checked,) = [each for each in verify(world.store.workspace) if each.view == "ratings"]
        found = {each.name: each for each in examine(world.store.workspace)}["quarantine"]
        said = fs("quarantine", "list"), fs("quarantine", "list", "ratings")
        return [any(told in each for each in checked.problems), told in found.message, *(told in each for each in said)]

    assert all(is_told())
    assert fs.json("quarantine", "list")["missing"][0].startswith(told)
    source = world.root / "data/rides/1.parquet"
    source.rename(world.root / "1.parquet")  # else the next run reads the newest rows again
    world.rides("3", [9.0, 3.0], first=20)
    world.run()  # another run counts what there is, and hides nothing
    assert all(is_told())
    assert sorted(world.held()) == [10, 20]
    first.write_bytes(content)  # restored
    (world.root / "1.parquet").rename(source)
    assert not any(is_told())
    world.rides("4", [9.0], first=30)
    world.run()
    assert not any(is_told())
    shutil.rmtree(folder)
    assert "5 rows are missing" in fs("verify", expect=1)
    with pytest.raises(NotFoundError) as raised:
        world.store.release_quarantined("ratings", all=True, reason="x")
    command = re.search(r"`fs (materialize [^`]*)`", raised.value.hint)
    assert command is not None
    fs(*command[1].split())
    assert sorted(world.held()) == [1, 2, 3, 10, 20, 30]
    assert "missing" not in fs("verify")
    collect_garbage(world.store.workspace)
    assert "missing" not in fs("verify")


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_file_stops_what_needs_it_and_nothing_else(world: World, how: str) -> None:
    world.rides("1", BAD)
    world.run()
    world.clock.advance(72 * HOUR)
    world.rides("later", [3.0], first=20)
    world.run()
    (file,) = (world.root / "data/offline/taxi").rglob("held.*.parquet")
    content = file.read_bytes()
    file.write_bytes(content[:-20] if how == "cut" else b"")
    with pytest.raises(DamagedFileError, match="quarantine of ratings"):
        world.store.quarantined("ratings")
    (checked,) = verify(world.store.workspace)
    assert ["quarantine of ratings" in problem for problem in checked.problems] == [True]
    with pytest.raises(DamagedFileError, match="held"):
        world.store.release_quarantined("ratings", all=True, reason="x")
    world.clock.advance(72 * HOUR)
    world.rides("2", [3.0, 9.0], first=10)
    assert (world.run().appended, world.log().num_rows) == (1, 4)  # a run that reads later rows does not need it
    span = to_instant(world.at(-199)), world.clock()
    (stopped,) = materialize(world.store.workspace, *span)
    assert stopped.state == "failed"
    assert "Restore it from a backup" in (stopped.error or "")
    assert world.log().num_rows == 4
    file.write_bytes(content)
    assert world.held() == [1, 2, 3, 11]
    (whole,) = materialize(world.store.workspace, *span)
    assert (whole.state, whole.appended, whole.quarantined) == ("done", 0, 0)


def test_many_rows_fail(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi")
    world.apply()
    world.rides("1", [9.0] * 100_000 + [3.0])
    done = world.run()
    assert (done.appended, done.quarantined) == (1, 100_000)
    again = materialize(world.store.workspace, to_instant(world.at(-9)), world.clock())[0]
    assert (again.unchanged, again.quarantined) == (100_001, 0)
    assert world.store.release_quarantined("ratings", all=True, reason="x").appended == 100_000
    assert world.log().num_rows == 100_001


def test_gc_removes_what_is_decided_and_what_is_gone(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    fs = CommandLine(world.root, capsys)
    world.rides("1", BAD)
    world.run()
    folder = world.root / "data/offline/taxi/_quarantine.ratings.1"
    ids = world.store.quarantined("ratings")["fs_row_id"].to_pylist()
    world.store.release_quarantined("ratings", rows=ids[:1], reason="x")
    assert "quarantine" not in fs("gc")
    assert len(world.held()) == 2
    world.store.drop_quarantined("ratings", rows=ids[1:], reason="x")
    assert "1 files of the quarantine of taxi/ratings/1 would be removed." in fs("gc", "--dry-run")
    assert len(list(folder.glob("held.*"))) == 1
    assert fs.json("gc")["quarantines"] == [{"table": "taxi/ratings/1", "files": 1, "held": 0, "is_gone": False}]
    assert list(folder.glob("held.*")) == []
    (again,) = materialize(world.store.workspace, to_instant(world.at(-9)), world.clock())  # their ids are kept
    assert (again.appended, again.unchanged, again.quarantined) == (0, 5, 0)
    world.rides("2", [9.0, 3.0], first=10)
    world.run()
    text = (world.root / "features.py").read_text()
    world.define(text.replace('        Field("city", String, expect=[OneOf(["Bonn", "Köln"])]),\n', ""))
    world.apply(allow_breaking=True)
    assert "3 files of the quarantine of taxi/ratings/1 with 1 held rows would be removed" in fs("gc", "--dry-run")
    assert len(list(folder.glob("*"))) == 3
    assert "3 files of the quarantine of taxi/ratings/1 with 1 held rows removed" in fs("gc")
    assert list(folder.glob("*")) == []
    assert world.run().quarantined == 4  # all is read again for the new generation


def test_deleting_a_view_says_that_its_quarantine_goes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rides("1", BAD)
    world.run()
    world.define("")
    assert "3 rows of its quarantine would be deleted" in CommandLine(world.root, capsys)("plan")
    world.apply(allow_breaking=True, allow_destroy=True)
    assert list((world.root / "data/offline").rglob("held.*")) == []


def test_a_teardown_removes_quarantines(world: World) -> None:
    world.rides("1", BAD)
    world.run()
    world.store.teardown()
    assert list((world.root / "data/offline").rglob("held.*")) == []


def test_the_rows_of_an_entity_are_forgotten(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.rides("1", BAD)
    world.run()
    world.rides("2", [9.0, 8.0], first=2)
    world.run()
    ids = world.store.quarantined("ratings")["fs_row_id"].to_pylist()
    world.store.release_quarantined("ratings", rows=ids[1], reason="x")  # of driver 2
    with pytest.raises(InputError, match="'driver_id': 'two' is no int64"):
        world.store.forget_quarantined({"driver_id": "two"})
    with pytest.raises(NotFoundError, match="No rows of 'ratngs'"):
        world.store.forget_quarantined({"driver_id": 2}, "ratngs")
    fs = CommandLine(world.root, capsys)
    assert "0 rows are forgotten" in fs("quarantine", "forget", "--entity", "driver_id=99")
    assert fs.json("quarantine", "forget", "--entity", "driver_id=2", "--dry-run")["rows"] == 2
    assert "2 rows are forgotten, in 2 files." in fs("quarantine", "forget", "--entity", "driver_id=2")
    folder = world.root / "data/offline/taxi/_quarantine.ratings.1"
    held = [pq.read_table(path)["driver_id"].to_pylist() for path in sorted(folder.glob("held.*"))]
    assert held == [[1, 3], [3]]
    assert world.held() == [1, 3, 3]
    (again,) = materialize(world.store.workspace, to_instant(world.at(-9)), world.clock())
    assert (again.appended, again.quarantined) == (0, 0)
    assert world.held() == [1, 3, 3]


def test_how_many_rows_are_held_shows_everywhere(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    keeper, metrics = SnapshotKeeper(world.store.workspace), Metrics()
    keeper.load()
    world.rides("1", BAD, city=["Bonn", "<i>Berlin</i>", "Bonn", "Bonn", "Bonn"])
    world.run()
    world.clock.advance(HOUR)
    world.rides("2", [9.0, 4.0], first=10)
    world.run()
    fs = CommandLine(world.root, capsys)
    assert "ratings: 4 rows are set aside: `fs quarantine list ratings` shows why." in fs("status")
    assert fs.json("status")[0]["held"] == 4
    with serving_catalog(world.store.workspace.registry) as url:
        page = html.unescape(httpx.get(f"{url}/p/taxi/feature_view/ratings").text)
        assert "<dt>Rows that are set aside</dt><dd>4<br><code>rating: Between(1.0, 5.0)</code>" in page
        assert "a run sets them aside<" in page
        assert "Berlin" not in page
    keeper.refresh()
    metrics.progress(keeper.progress, world.clock())
    assert 'featurestore_quarantine_rows{view="ratings"} 4.0' in metrics.text().decode()
    world.store.drop_quarantined("ratings", all=True, reason="x")
    assert "set aside" not in fs("status")
    entry = world.store.workspace.ledger.latest("taxi", "quarantine", "ratings.1")
    assert entry is not None
    assert (entry.document["held"], entry.document["rules"]) == (0, {})


def test_deciding_takes_the_role_that_runs_take(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.rides("1", BAD)
    world.run()
    registry = world.store.workspace.registry
    texts = {
        role: create_token(registry.ledger, "taxi", role, expires_at_us=None, now_us=0)[0]
        for role in (Role.READER, Role.OPERATOR)
    }
    with serving_registry(registry) as url:
        monkeypatch.setenv("FS_REGISTRY", url)
        for role, text in texts.items():
            monkeypatch.setenv("FS_REGISTRY_TOKEN", text)
            with FeatureStore(world.root, clock=world.clock) as store:
                held = store.quarantined("ratings")["fs_row_id"].to_pylist()
                assert len(held) == 3
                if role is Role.READER:
                    with pytest.raises((AuthError, MaterializationError), match="operator"):
                        store.release_quarantined("ratings", all=True, reason="x")
                    with pytest.raises(AuthError, match="operator"):
                        store.drop_quarantined("ratings", all=True, reason="x")
                    with pytest.raises(AuthError, match="operator"):
                        store.forget_quarantined({"driver_id": 1})
                else:
                    assert store.release_quarantined("ratings", rows=held[:1], reason="x").appended == 1
                    assert store.drop_quarantined("ratings", all=True, reason="x").rows == 2
