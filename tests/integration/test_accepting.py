"""Rows that are right all the same: what was blocked is committed once, and nothing else by that word."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from support.command_line import CommandLine
from support.forked_fs import forked_fs
from support.rides import HOUR, World, view_of

from featurestore import Between, FeatureStore, Field, Fresh, Rows, Share
from featurestore.errors import FeatureStoreError, MaterializationError, NotFoundError
from featurestore.ledger.blocked import ACCEPTED, accepted_before, blocked_runs
from featurestore.ledger.runs import RunResult, all_runs
from featurestore.maintenance.status import status
from featurestore.prepare import prepare

BLOCKING = """
from datetime import timedelta
from featurestore import *
from featurestore.types import Float64, Int64

rides = PushSource("rides", ParquetSource("rides_file", "data/rides", "at"))
ratings = FeatureView(
    "ratings", entities=[Entity("driver", {"driver_id": Int64})], source=rides,
    schema=[Field("rating", Float64, expect=[Between(1, 5)])], on_failure="block", MORE
)
"""
SHIFTED = "sql='SELECT driver_id, \"at\", rating + 1 AS rating FROM rides'"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "taxi")


def blocked(world: World, **span: Any) -> str:
    """Run, see it blocked, and return the run's id."""
    with pytest.raises(MaterializationError, match="nothing was committed"):
        world.store.materialize_incremental(**span)
    return newest(world)


def newest(world: World) -> str:
    (run, *_) = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    return run.run_id


def acceptances(world: World) -> list[str]:
    return [str(entry.document["run_id"]) for entry in world.store.workspace.ledger.scan("taxi", ACCEPTED)]


def test_a_run_is_accepted_once(world: World) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    assert world.store.accept(run, "a new scale").appended == 2
    assert acceptances(world) == [run]
    world.clock.advance(HOUR)
    with pytest.raises(MaterializationError, match=rf"Run {run} was accepted already: a new scale \("):
        world.store.accept(run, "again")
    assert (world.committed(), acceptances(world)) == (2, [run])
    runs = all_runs(world.store.workspace.ledger, "taxi", now_us=world.clock())
    assert [each.state for each in runs] == ["done", "failed"], "being refused is no run, and nothing failed"


def test_a_blocked_run_tells_each_rule_in_one_form(world: World) -> None:
    told = "a: NotNull(): 1 of 2 rows", "b: x: 1 of 2 rows"
    run = RunResult("r", "rides", 1, "incremental", "failed", 0, "host", 1, unmet=told)
    assert replace(run, examples=("", "7 to 9")).notes() == [
        "not as expected: a: NotNull(): 1 of 2 rows",
        "not as expected: b: x: 1 of 2 rows (7 to 9)",
    ]
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    with pytest.raises(MaterializationError, match=r"ratings: The rows are not as expected, and nothing was committed"):
        world.store.materialize_incremental()


def test_the_status_says_what_is_blocked_until_it_is_not(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> str:
        (view,) = status(world.store.workspace)
        page = fs("status")
        assert (view.unexpected.blocked is not None) == ("was blocked" in page)
        return page

    fs = CommandLine(world.root, capsys)
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    assert f"run {run} was blocked, and nothing of it is committed: rating: Between(1.0, 5.0)" in told()
    assert f"`fs accept {run} --reason TEXT`" in told()
    world.clock.advance(HOUR)
    again = blocked(world)
    assert run not in told()
    world.store.accept(again, "a new scale")
    page = told()
    assert "ratings: its last run is not as expected: rating: Between(1.0, 5.0)" in page
    assert ", accepted all the same: a new scale (" in page
    world.clock.advance(HOUR)
    world.write([99.0])
    third = blocked(world)
    assert third in told()
    assert fs.json("status")[0]["unexpected"]["blocked"]["run_id"] == third
    world.files -= 1
    world.write([3.0])  # the source is right now: a later run reads the same span
    world.clock.advance(HOUR)
    world.store.materialize_incremental()
    page = told()
    assert "expected" not in page
    assert "blocked" not in page


def test_of_two_who_accept_at_once_one_is_told_that_it_came_second(world: World) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run, told, begin = blocked(world), [], threading.Barrier(2)

    def accept() -> None:
        with FeatureStore(world.root, clock=world.clock) as store:
            begin.wait()
            try:
                told.append(str(store.accept(run, "a new scale").appended))
            except FeatureStoreError as error:
                told.append(str(error))

    threads = [threading.Thread(target=accept) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    one, other = sorted(told, key=len)
    assert one == "2"
    assert f"Run {run} was accepted already" in other
    assert (world.committed(), acceptances(world)) == (2, [run])


def test_rows_that_are_not_those_that_were_blocked_are_not_accepted(world: World) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    world.files -= 1
    world.write([4.0, 5.0])  # corrected: as expected, and still not what was accepted
    with pytest.raises(MaterializationError, match="no longer those that were blocked; nothing was committed"):
        world.store.accept(run, "a new scale")
    assert (world.committed(), acceptances(world)) == (0, [])
    world.files -= 1
    world.write([4.0, 50.0])
    blocked(world)  # the word that was given for nothing lets nothing pass
    assert world.committed() == 0
    (world.root / f"data/rides/{world.files}.parquet").unlink()
    with pytest.raises(MaterializationError, match="no longer those"):
        world.store.accept(newest_blocked(world), "they are gone")


def newest_blocked(world: World) -> str:
    ((_, run),) = blocked_runs(world.store.workspace.ledger, "taxi")
    return run.run_id


def test_rules_that_nobody_accepted_block_again(world: World) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    stricter = [Field("rating", view_of().stored[0].type, expect=[Between(4.5, 60)])]
    changed = view_of(on_failure="block").replaced(fields=(*stricter, *view_of().stored[1:]))
    world.store.apply([changed])
    with pytest.raises(MaterializationError, match=r"Between\(4.5, 60.0\): 1 of 2 rows.*changed since the run"):
        world.store.accept(run, "a new scale")
    assert (world.committed(), acceptances(world)) == (0, [])
    again = newest_blocked(world)
    assert again != run
    assert world.store.accept(again, "that, too").appended == 2


def test_what_is_applied_besides_takes_no_word_back(world: World) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    world.store.apply([view_of(on_failure="block", description="by stars")])
    assert world.store.accept(run, "a new scale").appended == 2


@pytest.mark.parametrize("on_failure", ["warn", "quarantine"])
def test_rows_that_are_as_expected_by_now_need_no_acceptance(world: World, on_failure: str) -> None:
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    world.store.apply([view_of(on_failure=on_failure)])
    with pytest.raises(MaterializationError, match="fs materialize --view ratings"):
        world.store.accept(run, "a new scale")
    assert world.committed() == 0
    world.run()
    assert world.committed() == {"warn": 2, "quarantine": 1}[on_failure]


def test_a_run_that_sets_rows_aside_is_accepted_without_them(world: World) -> None:
    world.store.apply([view_of(on_failure="quarantine", expect=[Rows(at_least=3)])])
    world.write([4.0, 50.0])
    run = blocked(world)
    done = world.store.accept(run, "a quiet night")
    assert (done.appended, done.quarantined, world.committed()) == (1, 1, 1)
    assert acceptances(world) == [run]


def test_a_rebuild_that_withdraws_rows_is_accepted_when_confirmed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    from featurestore.materialization import materialize

    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 5.0, 3.0])
    world.run()
    world.files -= 1
    world.clock.advance(-HOUR)  # of the three rows one is left, with another value
    world.write([50.0])
    world.clock.advance(HOUR)
    now, start = world.clock(), world.clock() - 3 * HOUR // timedelta(microseconds=1)
    (run,) = materialize(world.store.workspace, start, now, rebuild=True, confirm=lambda view, rows: True)
    assert "nothing was committed" in (run.error or "")
    with pytest.raises(MaterializationError, match="would withdraw 2 rows"):
        world.store.accept(run.run_id, "a new scale")
    fs = CommandLine(world.root, capsys)
    assert "pass --yes" in fs("accept", run.run_id, "--reason", "a new scale", expect=2)
    assert (world.committed(), acceptances(world)) == (3, [])
    assert "a new scale (" in fs("accept", run.run_id, "--reason", "a new scale", "--yes")
    assert world.committed() == 2  # both values of the row that is left


@pytest.mark.parametrize("is_new", [True, False])
def test_a_run_that_blocks_an_apply_which_prepares_is_accepted_where_it_was_blocked(
    world: World, is_new: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    world.store.apply([view_of().sources[0], *view_of().entities])
    if not is_new:
        (world.root / "features.py").write_text(BLOCKING.replace("MORE", "").replace("Between(1, 5)", ""))
        world.store.apply()
    world.write([4.0, 50.0])
    if not is_new:
        world.run()
    more = "" if is_new else SHIFTED
    (world.root / "features.py").write_text(BLOCKING.replace("MORE", more))
    fs = CommandLine(world.root, capsys)
    told = fs("apply", "--prepare", "--yes", expect=1)
    run = told.partition("fs accept ")[2].split()[0]
    before = world.store.workspace.snapshot().chain.head
    assert "run `fs apply --prepare` again" in fs("accept", run, "--reason", "a new scale")
    assert world.store.workspace.snapshot().chain.head == before
    if not is_new:
        assert world.committed() == 2  # of the generation that is served
        assert world.store.workspace.snapshot().views["ratings"].generation == 1
    assert acceptances(world) == [run]
    fs("apply", "--prepare", "--yes")
    world.store.workspace.snapshot()
    assert world.committed() == 2
    assert world.store.workspace.snapshot().views["ratings"].generation == (1 if is_new else 2)
    frame = world.store.get_online_features(["ratings:rating"], [{"driver_id": 2001}]).to_dict()
    assert frame["rating"] == [50.0 if is_new else 51.0]


def test_a_generation_that_nobody_prepares_any_more_is_not_filled(world: World) -> None:
    world.store.apply([view_of()])
    world.write([4.0, 50.0])
    world.run()
    (world.root / "features.py").write_text(BLOCKING.replace("MORE", SHIFTED))
    plan = world.store.plan(prepare=True)
    with pytest.raises(MaterializationError, match="nothing was committed"):
        prepare(world.store.workspace, plan)
    run = newest_blocked(world)
    (world.root / "features.py").write_text(BLOCKING.replace("MORE", ""))
    with pytest.raises(NotFoundError, match="prepared a generation that is not prepared any more"):
        world.store.accept(run, "a new scale")
    assert accepted_before(world.store.workspace.ledger, "taxi", "ratings.2", run) is None


def test_a_run_does_not_outgrow_the_runs_that_it_is_compared_with(world: World) -> None:
    expect = [Rows(change_at_most=0.5)]
    world.store.apply([view_of(expect=expect, on_failure="block")])
    for count in (4, 4, 5):
        world.write([3.0] * count)
        done = world.run()
        assert [note for note in done.notes() if "not judged" in note] == [
            "not judged: Rows(change_at_most=0.5): change_at_most compares with 3 earlier runs of its kind that "
            "brought rows, and there are fewer"
        ]
    world.write([3.0] * 90)
    blocked(world)
    for hours in range(12):  # the span grows, at the rate of before it would hold few rows
        world.clock.advance(HOUR)
        if hours % 2:
            world.write([3.0] * 4)
        told = world.store.materialize_incremental(dry_run=True)[0].blocked
        assert told, hours
    world.store.accept(blocked(world), "a fair")


@pytest.mark.uncounted
def test_as_many_rows_for_each_hour_are_as_usual_however_long_the_span_is(world: World) -> None:
    world.store.apply([view_of(expect=[Rows(change_at_most=0.2)], on_failure="block")])
    for _ in range(4):
        world.write([3.0] * 4)
        world.run()
    for _ in range(5):  # nobody ran for five hours
        world.write([3.0] * 4)
        world.clock.advance(HOUR)
    assert world.run().unmet == ()


@pytest.mark.uncounted
def test_runs_that_brought_nothing_are_part_of_the_span_of_the_next(world: World) -> None:
    """A source that writes once in six hours, and a run each hour."""
    world.store.apply([view_of(expect=[Rows(change_at_most=0.3)], on_failure="block")])
    for hour in range(24):
        if hour % 6 == 0:
            world.write([3.0] * 12)
        assert world.run().unmet == ()
    world.write([3.0] * 12)
    world.clock.advance(2 * HOUR)  # late
    assert world.run().unmet == ()


def test_a_share_is_what_it_says(world: World) -> None:
    expect = [Share("rating IS NULL", at_most=0.29)]
    schema = [Field("rating", view_of().stored[0].type, expect=[*view_of().stored[0].expect])]
    world.store.apply([view_of(expect=expect).replaced(fields=(*schema, *view_of().stored[1:]))])
    world.write([None] * 29 + [3.0] * 71)
    assert world.run().unmet == ("rating: NotNull(max_share=0.25): 29 of 100 rows",)


@pytest.mark.uncounted
def test_a_change_is_what_it_says(world: World) -> None:
    world.store.apply([view_of(expect=[Rows(change_at_most=0.29)])])
    for count in (100, 100, 100, 100, 129):
        world.write([3.0] * count)
        assert world.run().unmet == ()
    world.write([3.0] * 130)
    assert world.run().unmet == ("Rows(change_at_most=0.29): 130 rows, where runs like it had 100",)


def test_a_late_correction_leaves_a_view_fresh(world: World) -> None:
    world.store.apply([view_of(expect=[Fresh(within=2 * HOUR)], on_failure="block")])
    world.write([3.0])
    world.run()
    world.write([4.0], hours=-5)
    assert world.run().unmet == ()
    world.clock.advance(HOUR)
    world.write([4.0], hours=-5)
    blocked(world)


def test_a_dry_run_says_that_a_run_would_be_blocked(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    fs = CommandLine(world.root, capsys)
    assert "would be stopped by this, and would commit nothing" in fs("materialize", "--dry-run")
    (run,) = json.loads(fs("materialize", "--dry-run", "--json"))
    assert run["blocked"] == ["rating: Between(1.0, 5.0): 1 of 2 rows"]
    world.store.apply([view_of()])
    assert "would be stopped" not in fs("materialize", "--dry-run")
    (run,) = json.loads(fs("materialize", "--dry-run", "--json"))
    assert run["blocked"] == []


SCRIPT = """
from featurestore import FeatureStore
from support.clock import ManualClock
FeatureStore("taxi", clock=ManualClock(NOW)).accept("RUN", "a new scale")
"""


@pytest.mark.uncounted
@pytest.mark.parametrize("point", ["stage.written", "offline.committed", "commit.remembered", "watermark.committed"])
def test_who_accepts_and_is_killed_leaves_all_rows_or_none(tmp_path: Path, point: str) -> None:
    world = World(tmp_path / "taxi")
    world.store.apply([view_of(on_failure="block")])
    world.write([4.0, 50.0])
    run = blocked(world)
    world.store.close()
    code = SCRIPT.replace("RUN", run).replace("NOW", str(world.clock()))
    ((status, said),) = forked_fs().run_code(code, tmp_path, [{"FS_CRASH_AT": point}])
    assert status == 137, said
    if point == "stage.written":
        assert (world.committed(), acceptances(world)) == (0, [])
        world.store.accept(run, "a new scale")
    else:
        assert world.committed() == 2
        assert acceptances(world) == ([] if point == "offline.committed" else [run])
        with pytest.raises(MaterializationError, match="accepted already" if acceptances(world) else "no longer those"):
            world.store.accept(run, "a new scale")
    assert world.run().state == "done"
    assert world.committed() == 2
