"""Steps: listeners hear them, crash points end the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from featurestore.steps import CRASH_POINTS, Event, crash_point, listening, reached, step

pytestmark = pytest.mark.counts_processes


def test_listeners_hear_start_progress_and_end():
    events: list[Event] = []
    with listening(events.append), step("copy", "copy the rows", unit="rows") as running:
        running.advance(3, total=10)
        running.note(file="a")
    assert [(event.phase, event.done, event.total) for event in events] == [
        ("start", 0, None),
        ("advance", 3, 10),
        ("finish", 3, 10),
    ]
    assert events[-1].facts == {"file": "a"}
    assert events[0].title == "copy the rows"


def test_listeners_hear_of_failures():
    events: list[Event] = []
    with pytest.raises(ZeroDivisionError), listening(events.append), step("copy"):
        _ = 1 / 0
    assert [event.phase for event in events] == ["start", "fail"]


def test_nobody_listens_outside_the_block():
    events: list[Event] = []
    with listening(events.append):
        pass
    with step("copy"):
        pass
    assert events == []


def test_crash_points_are_declared_once_and_before_they_are_passed():
    name = crash_point("test.steps.once", "nothing")
    reached(name)
    with pytest.raises(AssertionError, match="twice"):
        crash_point(name, "nothing")
    with pytest.raises(AssertionError, match="not declared"):
        reached("test.steps.unknown")
    del CRASH_POINTS[name]


@pytest.mark.parametrize(("wanted", "passed"), [("here", 1), ("here:3", 3), ("elsewhere", 5)])
def test_a_crash_point_ends_the_process_at_its_passing(wanted, passed):
    code = (
        "from featurestore.steps import crash_point, reached\n"
        "import sys\n"
        "name = crash_point('here', 'x')\n"
        "for number in range(1, 6):\n"
        "    print(number, flush=True)\n"
        "    reached(name)\n"
    )
    import os

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "FS_CRASH_AT": wanted},
    )
    assert done.returncode == (0 if wanted == "elsewhere" else 137)
    assert done.stdout.split()[-1] == str(passed)
