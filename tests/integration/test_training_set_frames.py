"""Ways out of a training set: its first rows, Arrow streams, and polars where it is installed."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support.rows import commit_rows
from support.small_project import carrier_profile, delay_now, small_project

from featurestore.engine.interface import Joins
from featurestore.errors import DamagedFileError, InputError, TrainingSetChangedError
from featurestore.training import get_historical_features, get_training_set
from featurestore.workspace import Workspace

UTC = dt.UTC
ROWS = 30


def day(number: int) -> dt.datetime:
    return dt.datetime(2024, 1, number, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = small_project(tmp_path)
    delays = [
        {"carrier": "UA", "event_ts": day(number), "last_delay": number / 2, "flights": 2**60 + number}
        for number in range(1, 8)
    ]
    commit_rows(made, "carrier_profile", [*delays, {"carrier": "AA", "event_ts": day(3)}])
    yield made
    made.close()


def frame() -> pd.DataFrame:
    """Rows whose own columns and index are easily lost; the features of the first four are there, of others null."""
    own = pd.DataFrame(
        {
            "carrier": [*["UA"] * 4, *["AA"] * (ROWS - 4)],
            "event_timestamp": pd.to_datetime([day(1 + place % 7) for place in range(ROWS)]),
            "category": pd.Categorical(list("ab") * (ROWS // 2)),
            "scheduled": pd.to_datetime([day(2)] * ROWS),
            "factor": [float(place) for place in range(ROWS)],
        },
        index=pd.Index([f"row {place}" for place in range(ROWS)], name="name"),
    )
    own.attrs["from"] = "here"
    own.columns.name = "columns"
    return own


def damage(workspace: Workspace) -> None:
    """Change one byte of a file that every set here reads."""
    version = workspace.offline.current(workspace.snapshot().views["carrier_profile"].table)
    assert version is not None
    path = Path(version.files[0].path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FORMS = [pd.DataFrame.copy, pa.Table.from_pandas, pl.from_pandas]
ASKED = [carrier_profile, delay_now]


@pytest.mark.uncounted
@pytest.mark.parametrize("form", FORMS, ids=["pandas", "arrow", "polars"])
@pytest.mark.parametrize("n", [0, 1, 5, ROWS, ROWS + 1])
def test_the_head_is_the_first_rows(workspace: Workspace, form: Callable[[Any], Any], n: int) -> None:
    head = get_historical_features(workspace, form(frame()), ASKED).head(n)
    alone = get_historical_features(workspace, form(frame().head(n)), ASKED).to_pandas()
    pd.testing.assert_frame_equal(head, alone)
    if form is pd.DataFrame.copy:
        pd.testing.assert_frame_equal(head[list(frame().columns)], frame().iloc[:n])
        assert (head.attrs, head.columns.name) == ({"from": "here"}, "columns")
    whole = get_historical_features(workspace, form(frame()), ASKED)
    assert pa.table(dict(head.items())).to_pylist() == pa.table(dict(whole.to_pandas().items())).to_pylist()[:n]
    again = whole.head(n)  # of what was joined already
    pd.testing.assert_frame_equal(again, alone)
    assert head["flights"].tolist()[:4] == [2**60 + number for number in range(1, 1 + min(n, 4))]


def test_the_head_joins_its_own_rows_alone(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    joined = []
    engine_join = type(workspace.engine.joins).join

    def join(self: Joins, keys: pa.Table, *arguments: Any, **options: Any) -> Any:
        joined.append(keys.num_rows)
        return engine_join(self, keys, *arguments, **options)

    monkeypatch.setattr(type(workspace.engine.joins), "join", join)
    made = get_historical_features(workspace, frame(), ASKED)
    assert len(made.head()) == 5
    assert len(made.head(2)) == 2
    assert joined == [5, 2]
    assert made.certificate.rows == ROWS
    assert len(made.to_pandas()) == ROWS
    assert len(made.head(3)) == 3
    assert joined == [5, 2, ROWS]  # also the look at what availability holds back takes that join


def test_the_head_of_a_span(workspace: Workspace) -> None:
    span = get_historical_features(workspace, None, ["carrier_profile:flights"], start=day(1), end=day(31))
    head = span.head(3)
    assert head.to_dict("list") == {
        "carrier": ["UA", "UA", "AA"],
        "event_timestamp": [day(1), day(2), day(3)],
        "flights": [2**60 + 1, 2**60 + 2, None],
    }
    assert len(span.to_pandas()) == 8
    pd.testing.assert_frame_equal(span.head(3), head)
    assert len(span.head(0)) == 0
    assert len(span.head(9)) == 8


def test_a_number_that_is_none_of_rows_is_refused(workspace: Workspace) -> None:
    with pytest.raises(InputError, match="n=-1 is not a number of rows"):
        get_historical_features(workspace, frame(), ASKED).head(-1)


def test_the_head_of_a_saved_set_is_compared_with_what_was_saved(workspace: Workspace) -> None:
    own = frame()
    made = get_historical_features(workspace, own, delay_now)
    made.save("first")
    again = get_training_set(workspace, "first")
    pd.testing.assert_frame_equal(again.head(2), made.head(2))
    again = get_training_set(workspace, "first")

    def other(inputs: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = len(inputs["factor"])  # the same in the first row, and in no other
        return {"scaled_delay": [made.head(1)["scaled_delay"].iloc[0]] * rows, "hour": [0] * rows}

    object.__setattr__(again.joined("").functions[0], "_function", other)
    with pytest.raises(TrainingSetChangedError):
        again.head(1)


def test_the_head_reads_no_damaged_file(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), ASKED)
    damage(workspace)
    with pytest.raises(DamagedFileError):
        made.head()


@pytest.mark.parametrize("form", FORMS, ids=["pandas", "arrow", "polars"])
def test_what_reads_arrow_streams_takes_a_training_set(workspace: Workspace, form: Callable[[Any], Any]) -> None:
    training = get_historical_features(workspace, form(frame()), ASKED)
    expected = training.to_arrow()
    assert pa.table(training).to_pylist() == expected.to_pylist()
    assert pa.table(training).schema == expected.schema
    assert pl.DataFrame(training).to_dicts() == pl.DataFrame(expected).to_dicts()
    answers = duckdb.sql("SELECT carrier, sum(flights)::HUGEINT, count(*) FROM training GROUP BY ALL ORDER BY ALL")
    assert answers.fetchall() == [("AA", None, ROWS - 4), ("UA", 2**62 + 10, 4)]
    narrow = pa.schema([field.with_type(pa.int32()) if field.name == "hour" else field for field in expected.schema])
    asked = pa.RecordBatchReader._import_from_c_capsule(training.__arrow_c_stream__(narrow.__arrow_c_schema__()))
    assert asked.read_all().schema.field("hour").type == pa.int32()


def test_an_error_of_the_join_is_ours_in_a_stream_too(workspace: Workspace) -> None:
    made = get_historical_features(workspace, frame(), ASKED)
    damage(workspace)
    with pytest.raises(DamagedFileError):
        pl.DataFrame(made)


def test_without_polars_it_says_what_to_install(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    made = get_historical_features(workspace, frame(), ASKED)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(InputError, match=r"to_polars\(\) needs polars.*pip install '\.\[polars\]'"):
        made.to_polars()
    assert len(made.to_pandas()) == ROWS
