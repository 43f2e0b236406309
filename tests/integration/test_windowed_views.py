"""Views with aggregations from their definition to a training set, as a data scientist uses them."""

from __future__ import annotations

import datetime as dt
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore import (
    Aggregation,
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    OnDemandFeatureView,
    ParquetSource,
    TrainingSetWarning,
)
from featurestore.errors import CertificateError, DefinitionError, InputError, SourceSchemaError
from featurestore.ledger.watermarks import read_watermark
from featurestore.materialization import materialize, succeeded
from featurestore.training import certificate as certificates
from featurestore.training.certificate import Certificate
from featurestore.training.reference_windows import ReferenceEvent, reference_window
from featurestore.types import Float64, Int64

BEGIN = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CUSTOMER = Entity("customer", join_keys={"customer_id": Int64})
WINDOWS = [HOUR, 7 * DAY, None]
TYPES = pa.schema(
    [
        ("customer_id", pa.int64()),
        ("bought_at", pa.timestamp("us", "UTC")),
        ("known_at", pa.timestamp("us", "UTC")),
        ("order_id", pa.string()),
        ("amount", pa.float64()),
        ("merchant", pa.string()),
    ]
)


def micros(instant: dt.datetime) -> int:
    return (instant - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // timedelta(microseconds=1)


def purchase(number: int, dice: Random) -> dict[str, Any]:
    at = BEGIN + timedelta(seconds=dice.randrange(86_400 * 20))
    return {
        "customer_id": dice.randrange(8),
        "bought_at": at,
        "known_at": at + timedelta(seconds=dice.choice([0, 0, 60, 200_000])),
        "order_id": f"o{number}",
        "amount": dice.choice([None, dice.randrange(-500, 10_000) / 100]),
        "merchant": dice.choice("abc"),
    }


def purchases(count: int) -> list[dict[str, Any]]:
    dice = Random(3)
    return [purchase(number, dice) for number in range(count)]


def source(path: Path, created: str | None = "known_at") -> ParquetSource:
    return ParquetSource("purchases_file", str(path / "purchases"), "bought_at", created)


def write(path: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (path / "purchases").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=TYPES), path / "purchases" / f"{name}.parquet")


def view_of(path: Path, **options: Any) -> FeatureView:
    aggregations = [
        Aggregation("amount", "sum", windows=WINDOWS),
        Aggregation("amount", "std", windows=WINDOWS),
        Aggregation("*", "count", windows=WINDOWS),
        Aggregation("amount", "sum", windows=[7 * DAY], name="refunds", where="amount < 0"),
        Aggregation("merchant", "last_n", n=2, windows=WINDOWS),
    ]
    given = {"aggregations": aggregations, "event_id": "order_id", "source": source(path), **options}
    return FeatureView("purchases", entities=[CUSTOMER], online=False, **given)


@pytest.fixture
def store(tmp_path: Path):
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    with closing(FeatureStore(tmp_path)) as store:
        yield store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path


def frame_of(rows: list[dict[str, Any]], count: int = 60) -> pd.DataFrame:
    dice = Random(5)
    return pd.DataFrame(
        {
            "customer_id": [dice.randrange(10) for _ in range(count)],
            "event_timestamp": [BEGIN + timedelta(seconds=dice.randrange(86_400 * 30)) for _ in range(count)],
            "label": range(count),
        }
    )


def by_plain_loops(view: FeatureView, rows: list[dict[str, Any]], key: int, at: dt.datetime) -> dict[str, Any]:
    events = sorted(
        (
            ReferenceEvent(
                micros(row["bought_at"]),
                micros(row["known_at"]),
                number,
                row,
                frozenset({"amount < 0"} if row["amount"] is not None and row["amount"] < 0 else ()),
            )
            for number, row in enumerate(rows)
            if row["customer_id"] == key
        ),
        key=lambda event: (event.event_us, event.known_us, event.sequence),
    )
    return {
        window.name: reference_window(
            events,
            micros(at),
            window.aggregation.function,
            column=None if window.aggregation.column == "*" else window.aggregation.column,
            is_float=True,
            condition=window.aggregation.where,
            length_us=window.length_us,
            resolution_us=window.resolution_us,
            n=window.aggregation.bound,
            as_of="available",
        )
        for window in view.windows
    }


def test_from_a_definition_to_a_training_set(store, root):
    rows = purchases(600)
    write(root, "1", rows[:400])
    view = view_of(root)
    store.apply([CUSTOMER, source(root), view])
    assert [(field.name, str(field.type)) for field in store.get(FeatureView, "purchases").features[:2]] == [
        ("amount_sum_1h", "Float64"),
        ("amount_sum_7d", "Float64"),
    ]
    (first,) = store.materialize_incremental()
    assert (first.read, first.appended) == (400, 400)
    rows[400:] = [{**row, "known_at": BEGIN + 25 * DAY + HOUR * place} for place, row in enumerate(rows[400:])]
    write(root, "2", [*rows[400:], {**rows[0], "known_at": BEGIN + 25 * DAY}])
    (second,) = store.materialize_incremental()
    assert (second.appended, second.conflicts) == (200, 0)
    (third,) = store.materialize_incremental()
    assert third.appended == 0
    frame = frame_of(rows)
    made = store.get_historical_features(features=["purchases:*"], entity_df=frame)
    found = made.to_arrow().to_pylist()
    for row in found:
        wanted = by_plain_loops(view, rows, row["customer_id"], row["event_timestamp"])
        assert {name: row[name] for name in wanted} == wanted
    certificate = made.certificate
    assert certificate.recomputed_rows == 60
    assert (certificate.views[0].windows, certificate.views[0].own_events) == (13, 0)
    assert "from the future" not in str(certificate)
    direct = store.get_historical_features(features=["purchases:*"], entity_df=frame, direct=True)
    assert direct.to_arrow().equals(made.to_arrow())
    assert direct.certificate.recomputed_rows == 60
    made.save("first")
    write(root, "3", [{**rows[0], "order_id": "new"}])
    store.materialize_incremental()
    assert store.get_training_set("first").to_arrow().equals(made.to_arrow())


def test_a_wrong_window_is_caught_by_the_certificate(store, root, monkeypatch):
    rows = purchases(200)
    write(root, "1", rows)
    store.apply([CUSTOMER, source(root), view_of(root)])
    store.materialize_incremental()
    made = store.get_historical_features(features=["purchases:count_7d"], entity_df=frame_of(rows))
    made.to_arrow()
    real = certificates.recounted

    def off_by_one(*given: Any) -> Any:
        count, wrong = real(*given)
        return count, [*wrong, (3, "count_7d", 4, 5)]

    assert made.certificate.rows == 60
    again = store.get_historical_features(features=["purchases:count_7d"], entity_df=frame_of(rows))
    monkeypatch.setattr(certificates, "recounted", off_by_one)
    with pytest.raises(
        CertificateError, match="Row 3 of purchases:count_7d is 4, but plain loops over the files give 5"
    ):
        _ = again.certificate


def test_own_events_and_what_comes_later_are_told(store, root):
    rows = [{**row, "known_at": row["bought_at"]} for row in purchases(50)]
    write(root, "1", rows)
    store.apply([CUSTOMER, source(root), view_of(root)])
    store.materialize_incremental()
    frame = pd.DataFrame(
        {"customer_id": [row["customer_id"] for row in rows], "event_timestamp": [row["bought_at"] for row in rows]}
    )
    made = store.get_historical_features(features=["purchases:count_1h"], entity_df=frame)
    with pytest.warns(TrainingSetWarning, match=r"50 of 50 entity rows count an event .* of their very instant"):
        counted = made.to_arrow()["count_1h"].to_pylist()
    assert "50 of 50" in made.warnings[0]
    assert made.certificate.views[0].own_events == 50
    assert "own events:           100.00% (50) of the rows" in str(made.certificate)
    frame["event_timestamp"] -= timedelta(microseconds=1)
    without = store.get_historical_features(features=["purchases:count_1h"], entity_df=frame)
    assert [one - 1 for one in counted] == without.to_arrow()["count_1h"].to_pylist()
    assert without.warnings == []


def test_a_backfill_that_hides_everything_is_told(store, root):
    rows = [{**row, "known_at": BEGIN + 300 * DAY} for row in purchases(50)]
    write(root, "1", rows)
    store.apply([CUSTOMER, source(root), view_of(root)])
    store.materialize_incremental()
    frame = frame_of(rows)
    frame["event_timestamp"] += 20 * DAY
    made = store.get_historical_features(features=["purchases:count_all"], entity_df=frame)
    with pytest.warns(TrainingSetWarning, match=r"of the entity rows count no event of .* pass as_of='event'"):
        found = made.to_arrow()
    assert set(found["count_all"].to_pylist()) == {0}
    assert "held back" in str(made.certificate)
    seen = store.get_historical_features(features=["purchases:count_all"], entity_df=frame, as_of="event")
    assert max(seen.to_arrow()["count_all"].to_pylist()) > 0


def test_a_service_mixes_windows_plain_views_and_functions(store, root):
    rows = purchases(100)
    write(root, "1", rows)
    windowed = view_of(root)
    plain = FeatureView(
        "newest", entities=[CUSTOMER], source=source(root), schema=[Field("amount", Float64)], online=False
    )
    ratio = OnDemandFeatureView(
        "ratio",
        sources=[windowed[["amount_sum_7d", "count_7d"]]],
        schema=[Field("mean_7d", Float64)],
        mode="python",
        function=lambda inputs: {
            "mean_7d": [s / n if n and s is not None else None for s, n in zip(*inputs.values(), strict=True)]
        },
    )
    service = FeatureService("model", [windowed[["amount_sum_all"]], plain, ratio])
    store.apply([CUSTOMER, source(root), windowed, plain, ratio, service])
    store.materialize_incremental()
    made = store.get_historical_features(features="model", entity_df=frame_of(rows))
    certificate = made.certificate
    assert {view.name: view.from_future for view in certificate.views} == {"newest": 0, "purchases": None}
    assert "from the future:      0 answers of views without windows (by a separate query)\n" in str(certificate)
    again = Certificate.from_dict(certificate.to_dict())
    assert [view.from_future for view in again.views] == [view.from_future for view in certificate.views]
    for row in made.to_arrow().to_pylist():
        wanted = by_plain_loops(windowed, rows, row["customer_id"], row["event_timestamp"])
        assert row["amount_sum_all"] == wanted["amount_sum_all"]
        if row["mean_7d"] is not None:
            assert row["mean_7d"] == wanted["amount_sum_7d"] / wanted["count_7d"]


def test_look_backs_before_what_was_committed_are_told(store, root):
    rows = [{**row, "known_at": row["bought_at"]} for row in purchases(100)]
    write(root, "1", rows)
    view = view_of(root, aggregations=[Aggregation("*", "count", windows=[7 * DAY])])
    store.apply([CUSTOMER, source(root), view])
    store.materialize(BEGIN + 5 * DAY, BEGIN + 20 * DAY)
    store.materialize(BEGIN, BEGIN + 2 * DAY)
    at = [BEGIN + 13 * DAY, BEGIN + 11 * DAY, BEGIN + 12 * DAY + HOUR - timedelta(microseconds=1), BEGIN + 1 * DAY]
    frame = pd.DataFrame({"customer_id": [1] * 4, "event_timestamp": at})
    with pytest.warns(TrainingSetWarning, match="1 of 4 entity rows look past what was committed of view 'purchases'"):
        made = store.get_historical_features(features=["purchases:count_7d"], entity_df=frame)
    assert made.certificate.views[0].not_covered == 1


@pytest.mark.uncounted
def test_a_first_run_that_begins_after_the_source_does_not_cover_look_backs(store, root):
    write(root, "1", [{**row, "known_at": row["bought_at"]} for row in purchases(100)])
    view = view_of(root, aggregations=[Aggregation("*", "count", windows=[7 * DAY, None])])
    store.apply([CUSTOMER, source(root), view])
    frame = pd.DataFrame({"customer_id": [1] * 3, "event_timestamp": [BEGIN + day * DAY for day in (11, 14, 4)]})

    def covered(feature: str) -> int:
        made = store.get_historical_features(features=[f"purchases:{feature}"], entity_df=frame)
        return made.certificate.views[0].not_covered

    store.materialize(BEGIN + 5 * DAY, BEGIN + 20 * DAY)
    span = "2024-01-01T02:42:56.000000Z 2024-01-06T00:00:00.000000Z"  # from the source's first event on
    with pytest.warns(TrainingSetWarning, match=f"3 of 3 entity rows .* with `fs materialize {span} --view"):
        assert covered("count_7d") == 3
    store.apply([view.replaced(aggregations=(Aggregation("*", "count", windows=[7 * DAY]),))], allow_breaking=True)
    with pytest.warns(TrainingSetWarning, match=f"2 of 3 entity rows .* with `fs materialize {span} --view"):
        assert covered("count_7d") == 2
    store.materialize(BEGIN - 2 * DAY, BEGIN + 5 * DAY)  # from here on the source is known to have nothing earlier
    assert covered("count_7d") == 0
    store.apply([view])
    assert covered("count_all") == 0


def test_what_a_run_with_dates_does_not_read_may_be_damaged(store, root):
    late = [{**row, "bought_at": row["bought_at"] + 30 * DAY, "known_at": None} for row in purchases(3_000)]
    write(root, "1", purchases(30))
    write(root, "2", late)
    damaged = root / "purchases" / "2.parquet"
    content = bytearray(damaged.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    damaged.write_bytes(content)
    store.apply([CUSTOMER, source(root, created=None), view_of(root, source=source(root, created=None))])
    (run,) = store.materialize(BEGIN, BEGIN + 20 * DAY)
    assert run.appended == 30
    assert read_watermark(store.workspace.ledger, store.workspace.snapshot().views["purchases"]).source_begun_us is None


def test_a_correction_counts_after_a_rebuild(store, root):
    rows = purchases(30)
    write(root, "1", rows)
    store.apply([CUSTOMER, source(root), view_of(root)])
    store.materialize_incremental()
    corrected = {**rows[0], "amount": 1e6, "known_at": BEGIN + 30 * DAY}
    write(root, "1", [corrected, *rows[1:]])
    (run,) = store.materialize_incremental()
    assert (run.appended, run.conflicts) == (0, 1)
    assert "1 events have other values than the event of the same id that counts" in run.notes()[0]
    assert len(run.notes()) == 1
    span = micros(BEGIN), micros(BEGIN + 20 * DAY)
    (dry,) = materialize(store.workspace, *span, rebuild=True, dry_run=True)
    assert (dry.withdrawn, dry.appended) == (1, 1)
    (rebuilt,) = succeeded(materialize(store.workspace, *span, rebuild=True, confirm=lambda view, count: count == 1))
    assert (rebuilt.withdrawn, rebuilt.appended) == (1, 1)
    assert rebuilt.notes() == ["withdrew 1 rows that the source no longer holds as they were"]
    frame = pd.DataFrame({"customer_id": [rows[0]["customer_id"]], "event_timestamp": [BEGIN + 300 * DAY]})
    made = store.get_historical_features(features=["purchases:amount_sum_all"], entity_df=frame)
    assert made.to_arrow()["amount_sum_all"][0].as_py() > 9e5
    write(root, "1", [corrected, *rows[1:], {**rows[1], "amount": 2e6}])
    (twice,) = succeeded(materialize(store.workspace, *span, rebuild=True))
    (note,) = twice.notes()
    assert note.startswith("1 events change nothing, nor do they with `--rebuild`: the source holds their id twice")
    assert (twice.duplicates, twice.unchanged, store.peek("purchases", dropped=True).num_rows) == (1, 30, 1)


def test_what_a_windowed_view_cannot_be(store, root):
    write(root, "1", purchases(5))
    parts = [CUSTOMER, source(root)]
    with pytest.raises(SourceSchemaError, match=r"its aggregations read 'amonut', .* Did you mean 'amount'"):
        store.plan([*parts, view_of(root, aggregations=[Aggregation("amonut", "sum", windows=[DAY])])])
    with pytest.raises(DefinitionError, match="a sum takes no String, which column 'merchant' is"):
        store.plan([*parts, view_of(root, aggregations=[Aggregation("merchant", "sum", windows=[DAY])])])
    quoted = Aggregation("*", "count", windows=[DAY], where='merchant = "a"')
    with pytest.raises(SourceSchemaError, match=r"read 'a', (?s:.*) Text takes single quotes: 'a'\. "):
        store.plan([*parts, view_of(root, aggregations=[quoted])])
    never = Aggregation("*", "count", windows=[DAY], where="merchant = null")
    (note,) = store.plan([*parts, view_of(root, aggregations=[never])]).notices
    assert "is true of none of 5 rows of the source that were tried: no comparison with NULL ever is. Write IS" in note
    wrong = Aggregation("*", "count", windows=[DAY], where="merchant < 0")
    with pytest.raises(SourceSchemaError, match="the condition 'merchant < 0' does not run"):
        store.plan([*parts, view_of(root, aggregations=[wrong])])
    store.apply([*parts, view_of(root)])
    with pytest.raises(InputError, match="it has a value at any instant, and no rows of its own"):
        store.get_historical_features(features=["purchases:count_1h"], start=BEGIN, end=BEGIN + DAY)
    store.materialize_incremental()
    counted = store.get_historical_features(
        features=["purchases:count_all"],
        entity_df="SELECT customer_id, event_ts AS event_timestamp, amount FROM purchases",
    )
    assert len(counted) == 5
