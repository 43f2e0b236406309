"""What was served beside what should have been: each cause is planted, and found by its name."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pandas as pd
import pytest
from support.command_line import CommandLine
from support.parity import WINDOWS, World, causes

from featurestore.materialization import materialize
from featurestore.online.records.encoder import RecordEncoder
from featurestore.types.times import to_instant


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "taxi")


@pytest.mark.parametrize("keys", ["plain", "hashed"])
def test_what_is_served_in_peace_has_no_difference(tmp_path: Path, keys: str) -> None:
    world = World(tmp_path / "taxi", keys)
    world.serve()
    world.rides("1", [(1, -1 / 60, 4.0, 10)])  # after it was served
    world.materialize()
    assert world.serve()[0] == [4.0, 10, "Ann", 1.8]
    found = world.parity()
    assert causes(found) == ({}, {})
    assert [(each.feature, each.rows, each.differs_then, each.differs_now) for each in found.features] == [
        (name, 10, 0, 0) for name in ("rating", "trips", "name", "per_trip")
    ]
    assert found.differences.num_rows == 0
    assert found.entities == ()
    assert "100 %" in str(found)


def test_rows_that_are_committed_afterwards_are_late(world: World) -> None:
    world.serve()
    world.rides("1", [(1, -1, 4.0, 10)])  # happened, and was known, an hour before
    world.materialize()
    found = world.parity()
    assert causes(found) == ({"late": 3}, {})  # rating, trips, and what is computed of them
    assert {row["feature"] for row in found.differences.to_pylist()} == {"rating", "trips", "per_trip"}
    assert found.entities == (("driver_id=1", 3),)
    hashed = (f"origin={'0f' * 32}, dest={'1e' * 32}", 7)
    told = [note for note in replace(found, entities=(*found.entities, *[hashed] * 9)).notes() if "most" in note]
    assert told == [
        "most differences: driver_id=1 (3)",
        *["most differences: origin=0f0f0f0f0f0f…, dest=1e1e1e1e1e1e… (7)"] * 2,
    ]
    rating = found.features[0]
    assert (rating.rows, rating.differs_now, rating.greatest_error) == (5, 1, 0.5)
    assert rating.mean_error == pytest.approx(0.25)  # over the two rows in which both sides have a number


def test_the_page_stands_alone_and_shows_what_differs(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """Names of drivers are texts of anybody: they are shown, and do nothing."""
    world.write("plain", "1", [(2, -1, "<script>alert(1)</script>\u202e")])
    world.materialize()
    world.serve()
    world.write("plain", "1", [(2, -1 - 4 / 60, "Rob & Bob")])  # the clock has moved on by four minutes
    world.rides("1", [(1, -1, 4.0, 10)])
    world.materialize()
    fs, page = CommandLine(world.root, capsys), world.root / "parity.html"
    span = ["--since", "2024-02-01", "--until", "2024-04-01"]
    assert "A page is written to" in fs("parity", "model", *span, "--html", str(page))
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "\u202e" not in text
    assert "Rob &amp; Bob" in text
    assert "default-src 'none'" in text
    assert "All 4: " in text
    assert ">80.00 %<" in text
    assert "Every difference has a cause." in text
    assert "http" not in text.replace("http-equiv", "")
    nowhere = world.root / "no/folder/parity.html"
    fs("parity", "model", *span, "--html", str(nowhere), expect=1)
    assert "cannot be written" in fs.err
    (world.root / "parity.html").unlink()
    fs("parity", "model", "--html", str(page))  # of the last day, years later
    assert "Nothing was served in this span that can be compared." in page.read_text()


def test_a_later_version_of_the_same_event_is_a_correction(world: World) -> None:
    world.serve()
    world.write("plain", "1", [(2, -24 - 4 / 60, "Rob")])  # the clock has moved on by four minutes
    world.materialize()
    assert causes(world.parity()) == ({"corrected": 1}, {})


def test_what_is_committed_and_not_published_is_told(world: World) -> None:
    with world.store() as store:
        store.push("rides", world.columns([(1, -0.5, 1.0, 11)]), to="offline")
    world.serve()
    assert causes(world.parity()) == ({"not published": 3}, {"not published": 3})
    world.materialize()
    world.serve()
    assert causes(world.parity()) == ({"not published": 3}, {"not published": 3})  # the second answer has it


@pytest.mark.parametrize("keys", ["plain", "hashed"])
def test_what_was_pushed_online_only_is_told(tmp_path: Path, keys: str) -> None:
    world = World(tmp_path / "taxi", keys)
    with world.store() as store:
        store.push("rides", world.columns([(1, -0.5, 1.0, 11), (4, -0.5, 1.0, 2)]), to="online")
    world.serve()
    assert causes(world.parity()) == ({"pushed online": 6}, {"pushed online": 6})


def test_rows_that_the_source_lost_were_withdrawn(world: World) -> None:
    world.serve()
    world.rides("0", [(2, -5 - 4 / 60, 3.5, 4), (3, -24 * 8 - 4 / 60, 5.0, 1)])
    with world.store() as store:
        span = to_instant(world.at(-24)), to_instant(world.at(0))
        (run,) = materialize(store.workspace, *span, ["ratings"], rebuild=True, confirm=lambda view, rows: True)
    assert run.withdrawn == 1
    assert causes(world.parity())[0] == {"withdrawn": 3}


def test_a_row_that_was_released_is_told(world: World) -> None:
    text = (world.root / "features.py").read_text()
    checked = text.replace('Field("name", String)]', 'Field("name", String, expect=[Matches("[A-Z].*")])], '
                           'on_failure="quarantine"')  # fmt: skip
    (world.root / "features.py").write_text(checked)
    with world.store() as store:
        store.apply()
    world.write("plain", "1", [(2, -1, "bob"), (4, -1, "dan"), (3, -1, "Cem")])
    world.materialize()
    assert [row[2] for row in world.serve((2, 3, 4))] == ["Bob", "Cem", None]
    world.clock.advance(timedelta(minutes=1))
    with world.store() as store:
        store.release_quarantined("names", all=True, reason="nicknames are fine")
    world.clock.advance(timedelta(minutes=1))
    assert [row[2] for row in world.serve((2, 3, 4))] == ["bob", "Cem", "dan"]
    assert causes(world.parity()) == ({"released": 2}, {})


def test_another_ttl_is_told(world: World) -> None:
    assert world.serve()[2][:2] == [None, None]
    text = (world.root / "features.py").read_text()
    (world.root / "features.py").write_text(text.replace("ttl=timedelta(days=7)", "ttl=timedelta(days=70)"))
    with world.store() as store:
        store.apply()
    assert causes(world.parity()) == ({"ttl": 3}, {"ttl": 3})


def test_other_code_is_not_run(world: World) -> None:
    world.serve()
    text = (world.root / "features.py").read_text()
    (world.root / "features.py").write_text(text.replace("k / t if t", "-k / t if t"))
    with world.store() as store:
        store.apply()
    world.serve()
    found = world.parity()
    assert causes(found) == ({}, {})
    assert found.not_recomputed == {"per_trip": 5}
    assert [each.rows for each in found.features] == [10, 10, 10, 5]


def test_rows_of_an_earlier_secret_are_compared_as_well(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", "hashed")
    world.serve()
    settings = world.root / "feature_store.yaml"
    settings.write_text("project: taxi\nserved: {secret: another long text, earlier_secrets: [long and random text]}\n")
    world.serve()
    world.rides("1", [(1, -1, 4.0, 10)])
    world.materialize()
    found = world.parity()
    assert (found.rows, causes(found)) == (10, ({"late": 6}, {}))


@pytest.mark.parametrize("keys", ["plain", "hashed"])
def test_a_record_that_is_not_that_of_its_row_is_damaged(tmp_path: Path, keys: str) -> None:
    world = World(tmp_path / "taxi", keys)
    with world.store() as store:
        registered = store.workspace.snapshot().views["ratings"]
        encoder = RecordEncoder(registered.layout)
        at_us = world.clock() - 5 * 3_600_000_000
        store.workspace.online.write([encoder.write((1,), at_us, at_us, (99.0, 9))], now_us=world.clock())
    assert world.serve()[0][0] == 99.0
    assert causes(world.parity()) == ({"damaged": 1}, {"damaged": 1})


def test_windows_are_explained_by_their_events(tmp_path: Path) -> None:
    world = World(tmp_path / "taxi", more=WINDOWS)
    assert world.serve((1, 2, 9))[0][:3] == [2.0, 10.0, 2]
    with world.store() as store:
        store.push("events", world.trips([(1, -1 / 60, 1.0)]))
    world.clock.advance(timedelta(minutes=1))
    assert world.serve((1, 2, 9))[0][:3] == [3.0, 11.0, 3]
    assert causes(world.parity()) == ({}, {})
    late = pd.DataFrame(world.trips([(1, -0.25, 4.0)]))  # it happened before either was served
    late.to_parquet(world.root / "data/events/1.parquet")
    world.materialize()
    assert causes(world.parity()) == ({"late": 8}, {})  # two sums, a count, and what is computed of one, twice
    with world.store() as store:
        store.push("events", world.trips([(1, -1 / 60, 16.0)]), to="offline")
    world.serve((1, 2, 9))
    assert causes(world.parity()) == ({"late": 8, "not published": 4}, {"not published": 4})
