"""Certificates: every fact against plain counting, and that each check finds what it is there to find."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from support.projects import make_workspace
from support.rows import commit_rows
from support.small_project import carrier_profile, delay_now, origin_weather, small_project

from featurestore.definitions import Entity, FeatureView, Field, ParquetSource
from featurestore.engine.duck.join import DuckJoin
from featurestore.engine.interface import JoinFacts
from featurestore.errors import CertificateError
from featurestore.statistics.sets import sampled_rows
from featurestore.training import certificate, get_historical_features
from featurestore.training.certificate import Certificate
from featurestore.training.coverage import TrainingSetWarning
from featurestore.training.joins import SAMPLE_ROWS, Observed
from featurestore.types import Array, Float64, Int64, String
from featurestore.workspace import Workspace

UTC = dt.UTC
# An eighth of the frame's rows is held back on purpose; that it is told is tested with the training sets.
pytestmark = pytest.mark.filterwarnings("ignore:12% of the entity rows have no value")


def day(number: int, hour: int = 0) -> dt.datetime:
    return dt.datetime(2024, 1, number, hour, tzinfo=UTC)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = small_project(tmp_path)
    commit_rows(
        made,
        "carrier_profile",
        [
            {"carrier": "UA", "event_ts": day(2), "created_ts": day(3), "last_delay": 1.5, "flights": 7},
            {"carrier": "AA", "event_ts": day(3), "last_delay": None, "flights": 3},
            {"carrier": "NAN", "event_ts": day(3), "last_delay": math.nan, "flights": None},
        ],
    )
    yield made
    made.close()


FRAME = pd.DataFrame(
    {
        "carrier": [None, "ZZ", "UA", "UA", "UA", "UA", "AA", "NAN"],
        "event_timestamp": pd.to_datetime(
            [day(4), day(4), day(1), day(2, 1), day(20), day(4), day(10), day(3)], utc=True
        ),
    }
)


def test_every_fact_is_what_counting_gives(workspace: Workspace) -> None:
    certificate = get_historical_features(workspace, FRAME, carrier_profile).certificate
    (view,) = certificate.views
    assert view.nulls == {"null_key": 1, "no_entity": 1, "nothing_before": 1, "not_yet_available": 1, "expired": 1}
    assert view.null_values == {"last_delay": 1, "flights": 1}
    assert view.greatest_age_us == 7 * 86_400_000_000
    assert (view.from_future, view.not_covered) == (0, 0)
    assert (view.name, view.view, view.generation, view.table_version) == ("carrier_profile", "carrier_profile", 1, 0)
    assert (view.as_of, view.availability, view.rests_on) == ("available", "by recorded_at", "")
    assert (certificate.rows, certificate.features) == (8, ("last_delay", "flights"))
    assert (certificate.project, certificate.registry_revision) == ("shop", 1)
    assert certificate.recomputed_rows == 8
    assert certificate.certified_at == "2024-02-01T00:00:00.000000Z"


def test_it_reads_as_text_json_and_html(workspace: Workspace) -> None:
    own = FRAME.assign(origin="JFK", scheduled=pd.to_datetime([day(1)] * 8), factor=1.0)
    commit_rows(workspace, "airport_weather", [{"airport": "JFK", "event_ts": day(1), "temp": 1.0}])
    certificate = get_historical_features(workspace, own, [carrier_profile, origin_weather, delay_now]).certificate
    text = str(certificate)
    for line in (
        "rows:                 8",
        "registry:             project shop, revision 1",
        "recomputed:           8 rows by plain loops over the files: all equal",
        f"on demand:            delay_now, code {delay_now.code_hash}",
        "view:                 origin_weather of airport_weather, generation 1, table version 0",
        "availability:         not declared",
        "greatest age:         7 days",
        "without an answer:    null key 12.50% (1), no such entity 12.50% (1), nothing before 12.50% (1), "
        "not yet available 12.50% (1), expired 12.50% (1)",
        "null value:           last_delay 12.50% (1), flights 12.50% (1)",
    ):
        assert line in text.splitlines()
    document = json.loads(json.dumps(certificate.to_dict()))
    assert document == certificate.to_dict()
    assert Certificate.from_dict(document) == certificate
    assert document["views"][1]["name"] == "origin_weather"
    page = dataclasses.replace(certificate, project="<b>")._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page


def test_availability_is_told_for_each_view(tmp_path: Path) -> None:
    joined = FeatureView(
        "joined",
        entities=[Entity("carrier", {"carrier": String})],
        source=[ParquetSource("a", "a.parquet", "at"), ParquetSource("b", "b.parquet", "at")],
        sql="SELECT carrier, a.at AS at, x FROM a JOIN b USING (carrier)",
        schema=[Field("x", Int64)],
    )
    workspace = make_workspace(tmp_path, [joined, carrier_profile], now_us=day(30))
    for name in ("joined", "carrier_profile"):
        commit_rows(workspace, name, [{"carrier": "UA", "event_ts": day(1)}])
    certificate = get_historical_features(workspace, FRAME, [joined, carrier_profile], as_of="event").certificate
    assert certificate.views[0].availability == "not declared"
    assert certificate.views[0].rests_on.startswith("its SQL also reads b: ")
    assert certificate.views[1].availability == "declared by recorded_at, not considered (as_of=event)"
    assert "note:                 its SQL also reads b" in str(certificate)
    workspace.close()


def test_an_empty_set_has_one(workspace: Workspace) -> None:
    certificate = get_historical_features(workspace, FRAME.iloc[:0], carrier_profile).certificate
    assert (certificate.rows, certificate.recomputed_rows) == (0, 0)
    assert "without an answer:    no row" in str(certificate)


def test_it_is_made_once_and_before_or_after_the_rows(workspace: Workspace) -> None:
    made = get_historical_features(workspace, FRAME, carrier_profile)
    assert made.certificate is made.certificate
    other = get_historical_features(workspace, FRAME, carrier_profile)
    other.to_arrow()
    assert other.certificate == made.certificate


def change_joined(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let the engine's join answer something else."""
    joined = DuckJoin.batches

    def changed(join: DuckJoin) -> Any:
        return change(joined(join).read_all()).to_reader()

    monkeypatch.setattr(DuckJoin, "batches", changed)


def set_value(column: int, row: int, value: Any) -> Any:
    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value
        kind = table.schema.field(column)
        return table.set_column(column, kind, pa.array(values, kind.type))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            set_value(0, 5, 2.5),
            r"Row 5 of carrier_profile:last_delay is 2\.5, but plain loops over the files give 1\.5",
        ),
        (set_value(1, 5, None), r"Row 5 of carrier_profile:flights is None, but .* give 7"),
        (set_value(1, 2, 7), r"Row 2 of carrier_profile:flights is 7, but .* give None"),
        (set_value(0, 7, None), r"Row 7 of carrier_profile:last_delay is None, but .* give nan"),
        (set_value(0, 7, 0.0), r"Row 7 of carrier_profile:last_delay is 0\.0, but .* give nan"),
    ],
)
def test_a_wrong_value_is_found_by_plain_loops(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, change: Any, message: str
) -> None:
    change_joined(monkeypatch, change)
    made = get_historical_features(workspace, FRAME, carrier_profile)
    with pytest.raises(CertificateError, match=message):
        _ = made.certificate
    with pytest.raises(CertificateError):
        made.save("wrong")


def test_an_answer_from_the_future_is_refused(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    examined = DuckJoin.facts

    def one_from_the_future(join: DuckJoin) -> tuple[JoinFacts, ...]:
        return tuple(dataclasses.replace(facts, from_future=1) for facts in examined(join))

    monkeypatch.setattr(DuckJoin, "facts", one_from_the_future)
    with pytest.raises(CertificateError, match="1 answers of view 'carrier_profile' are in the future"):
        _ = get_historical_features(workspace, FRAME, carrier_profile).certificate


def test_files_that_are_cleaned_away_under_the_loops_open_the_set_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = get_historical_features(workspace, FRAME, carrier_profile)
    made.to_arrow()
    examined, recompute, cleaned = Event(), certificate.recompute, []

    def examine_first(join: DuckJoin) -> tuple[JoinFacts, ...]:
        try:
            return examine(join)
        finally:
            examined.set()

    def recompute_after_a_cleaner(rows: Any, pinned: Any, observed: Observed, *options: Any) -> None:
        assert examined.wait(60)
        if not cleaned:
            offline, version = workspace.offline, pinned.version
            cleaned.append(offline.staging(version.table) / "again.parquet")
            cleaned[0].write_bytes(Path(version.files[0].path).read_bytes())
            schema = pinned.read.registered.table_schema
            offline.commit(version.table, schema, base=version.number, add=cleaned, remove=version.files)
            offline.clean(version.table, keep=[])
        recompute(rows, pinned, observed, *options)

    examine = DuckJoin.facts
    monkeypatch.setattr(DuckJoin, "facts", examine_first)
    monkeypatch.setattr(certificate, "recompute", recompute_after_a_cleaner)
    with pytest.warns(TrainingSetWarning, match="opened again with the newest"):
        assert made.certificate.views[0].table_version == 1
    assert cleaned


def test_what_is_seen_of_a_set_in_parts_is_what_is_seen_of_it_whole(workspace: Workspace) -> None:
    made = get_historical_features(workspace, FRAME, carrier_profile)
    rows = made.joined("is of a span")
    (pinned,) = rows.pins
    columns = [column.combine_chunks() for column in pa.Table.from_batches(rows.join.batches()).columns]
    whole, parts = Observed(len(made)), [Observed(len(made)) for _ in range(3)]
    whole.see(pinned.read, columns, 0)
    for start, part in zip((0, 2, 5), parts, strict=True):
        part.see(pinned.read, [column[start : start + 3 if start else 2] for column in columns], start)
    for part in parts[1:]:
        parts[0].merge(part)
    assert parts[0].nulls == whole.nulls
    assert repr(parts[0].values(pinned.read)) == repr(whole.values(pinned.read))


def test_the_loops_read_many_files_composite_keys_and_features_that_came_later(tmp_path: Path) -> None:
    """Files of several commits, one written before a feature was added, with lists and 3,000 entity rows."""
    route = Entity("route", {"origin": String, "number": Int64})
    source = ParquetSource("s", "s.parquet", "at", "known")

    def view(*fields: Field) -> FeatureView:
        return FeatureView("legs", entities=[route], source=source, ttl=timedelta(days=3), schema=fields)

    fields = [Field("x", Float64), Field("items", Array(Int64))]
    workspace = make_workspace(tmp_path, [view(fields[0])], now_us=day(31))

    def rows(start: int, with_items: bool) -> list[dict[str, Any]]:
        return [
            {
                "origin": f"A{n % 7}",
                "number": n % 11,
                "event_ts": day(1 + (start + n) % 25, n % 24),
                "created_ts": day(1 + (start + n) % 25, n % 24) + timedelta(hours=n % 40),
                "x": float(n) if n % 5 else math.nan,
                **({"items": [n, None]} if with_items else {}),
            }
            for n in range(400)
        ]

    commit_rows(workspace, "legs", rows(0, with_items=False))
    workspace = make_workspace(tmp_path, [view(*fields)], now_us=day(31, 1))
    commit_rows(workspace, "legs", rows(3, with_items=True))
    frame = pd.DataFrame(
        {
            "number": [n % 13 if n % 17 else None for n in range(3_000)],
            "origin": [f"A{n % 8}" for n in range(3_000)],
            "event_timestamp": pd.to_datetime([day(1 + n % 28, n % 24) for n in range(3_000)], utc=True),
        }
    )
    for as_of in ("available", "event"):
        with pytest.warns(TrainingSetWarning, match="Feature 'items' of view 'legs': null for"):
            made = get_historical_features(workspace, frame, ["legs:x", "legs:items"], as_of=as_of)
        assert made.certificate.recomputed_rows == SAMPLE_ROWS
        assert made.certificate.views[0].nulls["null_key"] == sum(frame["number"].isna())
        assert made.certificate.views[0].nulls["expired"] > 0
    workspace.close()


def test_the_sample_is_the_same_each_time_and_spread_over_all_rows() -> None:
    assert sampled_rows(3, SAMPLE_ROWS).tolist() == [0, 1, 2]
    chosen = sampled_rows(1_000_000, SAMPLE_ROWS)
    assert chosen.tolist() == sampled_rows(1_000_000, SAMPLE_ROWS).tolist()
    assert len(set(chosen.tolist())) == SAMPLE_ROWS
    assert sorted(chosen.tolist()) == chosen.tolist()
    for tenth in range(10):
        assert 60 < sum(tenth * 100_000 <= row < (tenth + 1) * 100_000 for row in chosen) < 140


def test_values_are_taken_of_the_sampled_rows_whatever_the_batches(workspace: Workspace) -> None:
    read = get_historical_features(workspace, FRAME, "carrier_profile:flights").joined("").pins[0].read
    observed = Observed(5_000)
    for start in (0, 10, 2_000, 4_999):
        stop = {0: 10, 10: 2_000, 2_000: 4_999, 4_999: 5_000}[start]
        observed.see(read, [pa.array(range(start, stop))], start)
    assert observed.values(read) == {"flights": observed.rows.tolist()}
    assert observed.nulls == {("carrier_profile", "flights"): 0}
