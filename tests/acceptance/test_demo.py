"""`make demo` as a process, on a copy of the example, as a newcomer sees it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from support.example import EXAMPLE, made_once
from support.processes import plain_environment

FLIGHTS = 336_776
FEATURES = 37
WEEK = timedelta(weeks=1)
MARK = "FEATURESTORE_DEMO_TEST"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the example in which the demo has run, once for all workers, and what it printed."""
    root = made_once(tmp_path_factory, "demo", run_demo)
    return root / "feature_repo", (root / "printed.txt").read_text(encoding="utf-8")


def run_demo(root: Path) -> None:
    repo = root / "feature_repo"
    repo.mkdir(parents=True)
    for file in EXAMPLE.iterdir():
        if file.is_file():
            shutil.copy(file, repo)
    mark = f"{root}"
    # A store of the caller's own must not leak into the demo, nor the width of a terminal into what is read here.
    environment = {**plain_environment(), MARK: mark, "FS_ONLINE_STORE": "redis://nowhere.invalid", "COLUMNS": "100"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "feature_repo/demo.py"], cwd=root, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(f"the demo took {time.monotonic() - started:.0f} s")
    assert [process for process in psutil.process_iter() if mark in environment_of(process).values()] == []
    (root / "printed.txt").write_text(done.stdout, encoding="utf-8")


def environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return dict(process.environ())
    except psutil.Error:  # gone meanwhile, or somebody else's
        return {}


@pytest.mark.slow(15)
def test_every_step_is_shown_with_what_came_of_it(finished: tuple[Path, str]) -> None:
    _, page = finished
    steps = [int(found) for found in re.findall(r"^(\d)\. \w", page, re.MULTILINE)]
    assert steps == [1, 2, 3, 4, 5, 6]
    for command in (
        "make_sources.py --shift-to-now",
        "apply --yes",
        "materialize",
        "training-set",
        "serve",
        "curl .*/push",
    ):
        assert re.search(rf"^\$ .*{command}", page, re.MULTILINE), command
    for shown in (
        "nyc_flights is at revision 1.",
        f"{FLIGHTS:,} rows written",
        "from the future:      0 answers",
        f"{FLIGHTS:,} rows with",
        "carrier_recent: 3 appended, 0 known, 0 conflicting, 0 too late",
        "carrier_recent: 0 appended, 3 known, 0 conflicting, 0 too late",
        "The server stopped cleanly (exit code 0).",
    ):
        assert shown in page
    for word in ("Traceback", "Error", "Warning", "failed"):
        assert word not in page
    seconds = re.search(r"Done in (\d+) seconds", page)
    assert seconds is not None
    assert int(seconds[1]) < 180  # twenty on a machine of its own


def test_what_the_last_line_suggests_can_be_run(finished: tuple[Path, str]) -> None:
    repo, page = finished
    suggested = shlex.split(page.partition("Look around with: ")[2].splitlines()[0])
    done = subprocess.run(
        suggested, cwd=repo.parent, env=plain_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "carrier_delays" in done.stdout


def test_the_answer_over_http_is_of_three_flights(finished: tuple[Path, str]) -> None:
    _, page = finished
    table = page[page.index("answered in") : page.index("/push")].splitlines()
    head = next(line for line in table if line.strip().startswith("feature"))
    assert len(re.findall(r"\w\w \d+ (?:EWR|JFK|LGA)-\w{3}", head)) == 3
    rows = [line.split() for line in table[table.index(head) + 1 :] if "__" in line]
    cells = {row[0]: row[1:] for row in rows}
    assert len(cells) == FEATURES
    assert {len(found) for found in cells.values()} == {3}
    assert not [name for name in cells if "…" in name]
    # Asked for now: the plane has been down since its last landing, which was within the week that ends now.
    for name in ("carrier_delays__last_delay", "plane_status__last_airport", "departure_facts__minutes_since_landing"):
        assert not set(cells[name]) & {"NOT_FOUND", "OUTSIDE_MAX_AGE", "NULL_VALUE"}, name
    for minutes in cells["departure_facts__minutes_since_landing"]:
        assert 0 < float(minutes.replace(",", "")) < WEEK / timedelta(minutes=1) + 24 * 60


def test_windows_move_as_time_passes(finished: tuple[Path, str]) -> None:
    """Two flights of the three that landed were late: they are in the window of an hour, and leave it."""
    _, page = finished
    table = page[page.index("6. ") : page.index("Done in")].splitlines()
    lines = {line.strip().partition("  ")[0]: line.split()[-6:] for line in table if line.startswith((" now", " in "))}
    assert len(lines) == 6
    assert lines["now"][:4] == lines["in 30 min"][:4] == ["25", "2", "25", "2"]
    assert lines["in 70 min"][:4] == ["null", "0", "25", "2"]
    assert lines["in 26 hours"][:4] == ["null", "0", "null", "0"]
    assert "null" not in lines["in 26 hours"][4:]
    assert lines["in 40 days"] == ["null", "0", "null", "0", "null", "null"]


def test_the_training_set_is_every_flight_in_order(finished: tuple[Path, str]) -> None:
    repo, _ = finished
    frame = pq.read_table(repo / "data" / "departures.parquet")
    training = pq.read_table(repo / "data" / "training.parquet")
    assert len(training) == FLIGHTS
    assert training.select(frame.column_names).equals(frame)
    features = training.drop_columns(frame.column_names)
    assert features.num_columns == FEATURES
    plain = [name for name in features.column_names if "_recent__" not in name]
    assert min(pc.count(features[name]).as_py() for name in plain) > FLIGHTS * 0.8
    assert features["carrier_recent__late_1h"].null_count == 0
    # The leak to avoid: what is known of the plane at its departure is not the delay of the flight itself.
    known = training.filter(pc.is_valid(training["late"]))
    late_before = pc.greater(known["plane_status__last_delay"], 15)
    assert 0.5 < pc.mean(pc.equal(late_before, known["late"]).cast(pa.int8())).as_py() < 0.9


def test_every_instant_is_moved_by_one_whole_number_of_weeks(finished: tuple[Path, str], example_sources: Path) -> None:
    repo, _ = finished
    moved_by: set[timedelta] = set()
    instants = 0
    for path in sorted(example_sources.glob("*.parquet")):
        before, after = pq.read_table(path), pq.read_table(repo / "data" / path.name)
        assert after.schema.equals(before.schema)
        for name in before.column_names:
            if not pa.types.is_timestamp(before.schema.field(name).type):
                assert after[name].equals(before[name]), (path.name, name)
                continue
            instants += 1
            assert after[name].is_valid().equals(before[name].is_valid())
            moved_by |= set(pc.unique(pc.subtract(after[name], before[name]).drop_null()).to_pylist())
    assert instants == 11
    (shift,) = moved_by
    assert shift > timedelta(0)
    assert shift % WEEK == timedelta(0)
    last = pc.max(pq.read_table(repo / "data" / "flights.parquet")["arrived_at"]).as_py()
    assert timedelta(0) <= datetime.now(UTC) - last < WEEK + timedelta(minutes=10)
