"""DuckDB's own in the point-in-time join: its memory, its files, and that the examination finds a wrong choice."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurestore.engine.duck import choose
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import AsOf, ViewJoin
from featurestore.errors import CertificateError, EngineError
from featurestore.testing.engine_joins import NOON, frame_of, one_view, row, values
from featurestore.testing.engine_project import EngineProject


@pytest.fixture
def project(tmp_path: Path) -> EngineProject:
    return EngineProject(tmp_path, lambda root: open_engine(root, EngineSettings(threads=2)))


IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import duckdb, numpy as np, pyarrow as pa
from featurestore.engine.duck.engine import open_engine
from featurestore.engine.duck.session import EngineSettings
from featurestore.engine.interface import ViewJoin
from featurestore.testing.engine_project import EngineProject, instants, log_view
from featurestore.types import Float64, Int64
folder = Path({folder!r})
names = [f"f{{number}}" for number in range(40)]
with duckdb.connect() as con:
    con.execute("SET enable_progress_bar = false")
    features = ", ".join(f"(range * {{place + 3}}) % 7919 / 7.0 AS {{name}}" for place, name in enumerate(names))
    con.execute(f"COPY (SELECT range % 50000 AS shop, make_timestamptz(range) AS event_ts, NULL::TIMESTAMPTZ AS "
                f"created_ts, range AS fs_seq, 'batch' AS fs_origin, {{features}} FROM range(100000)) TO "
                f"'{{folder}}/log.parquet' (ROW_GROUP_SIZE 20000)")
view = log_view("wide", {{"shop": Int64}}, dict.fromkeys(names, Float64))
joined = ViewJoin("wide", view, (f"{{folder}}/log.parquet",), {{"shop": "shop"}}, tuple(names), "available")
rows = 1_200_000
frame = pa.table({{"shop": np.arange(rows) % 50_000, "when": instants(*[500_000] * rows)}})
def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
settings = EngineSettings(threads=2, memory_limit={limit!r}, temp_directory=str(folder))
project = EngineProject(folder, lambda root: open_engine(root, settings))
count = sum(batch.num_rows for batch in project.join(frame, [joined], batch_rows=10_000).batches())
print(count, round(peak() - before))
"""


def test_memory_stays_within_bounds(tmp_path: Path) -> None:
    """The result is 384 MB, and so are hash table and sort: with 150 MB for the engine it is spilled and streamed."""
    script = IN_LITTLE_MEMORY.format(folder=str(tmp_path), limit="150MB")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, grown_mb = map(int, done.stdout.split())
    assert count == 1_200_000
    assert grown_mb < 350


def test_a_sequence_number_used_twice_never_multiplies_rows(project: EngineProject) -> None:
    view = one_view(project, [row(1, NOON, None, 3, v=1), row(2, NOON, None, 3, v=2)])
    with pytest.raises(EngineError, match="other rows than the frame has"):
        values(project, view, (1, NOON), (2, NOON))


def choosing(patch: pytest.MonkeyPatch, rows: list[int], sequences: list[int]) -> None:
    """Make the join choose wrongly, so that the examination has something to find."""
    chosen = np.array(rows, np.int64), np.array(sequences, np.int64)
    patch.setattr(choose, "_answered", lambda *_: chosen)


def test_examination_finds_a_row_from_the_future(project: EngineProject, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row(1, NOON, NOON, 0, v=1), row(1, NOON + 5, NOON + 5, 1, v=2), row(1, NOON, NOON + 9, 2, v=3)]
    view, frame = one_view(project, rows), frame_of([1, 1], [NOON + 4, NOON + 4])
    choosing(monkeypatch, [0, 1], [1, 2])
    assert project.facts(frame, [view])[0].from_future == 2
    by_event = ViewJoin("shops", view.view, view.files, view.key_columns, ("v",), "event")
    assert project.facts(frame, [by_event])[0].from_future == 1


@pytest.mark.parametrize(
    ("rows", "sequences", "told"),
    [
        ([0], [1], "1 of these by a row of another entity"),
        ([0], [2], "1 of these by a row of another entity or an expired one"),
        ([], [], "1 lack theirs"),
    ],
    ids=["another entity", "expired", "missed"],
)
@pytest.mark.parametrize("as_of", ["event", "available"])
def test_examination_finds_a_wrong_choice(
    project: EngineProject,
    monkeypatch: pytest.MonkeyPatch,
    rows: list[int],
    sequences: list[int],
    told: str,
    as_of: AsOf,
) -> None:
    log = [row(1, NOON, NOON, 0, v=1), row(2, NOON, NOON, 1, v=2), row(1, NOON - 99, NOON - 99, 2, v=3)]
    choosing(monkeypatch, rows, sequences)
    with pytest.raises(CertificateError, match=told):
        project.facts(frame_of([1], [NOON]), [one_view(project, log, ttl_us=50, as_of=as_of)])


def test_spilled_files_are_gone_afterwards(tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    project = EngineProject(tmp_path, lambda root: open_engine(root, EngineSettings(temp_directory=str(spill))))
    assert values(project, one_view(project, [row(1, NOON, v=1)]), (1, NOON)) == [1]
    assert not [path for path in spill.rglob("*") if path.is_file()]
    shutil.rmtree(spill, ignore_errors=True)
