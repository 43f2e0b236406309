"""Views whose SQL makes one row of many: the same rows read twice give the same values, and late rows are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.clock import ManualClock
from support.materialized import DAY, day

from featurestore import Entity, FeatureStore, FeatureView, Field, ParquetSource
from featurestore.errors import SourceSchemaError
from featurestore.materialization import materialize, materialize_incremental, succeeded
from featurestore.plan.changes import explain
from featurestore.types import Array, Float64, Int64

pytestmark = pytest.mark.uncounted

NOW = day(40)
ROWS = 300_000
"""Three row groups, so that threads share them."""
SHOP = Entity("shop", {"shop": Int64})


@pytest.fixture(scope="module")
def many_sales(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sales of 50 shops in three files, none of them in order of time, amounts of very different size."""
    root = tmp_path_factory.mktemp("sales")
    rng = np.random.default_rng(7)
    (root / "sales").mkdir()
    for number in range(3):
        size = ROWS // 3
        sold = day(1) + rng.integers(0, 30, size) * DAY
        at = pa.array(sold, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
        amount = rng.standard_normal(size) * 10.0 ** rng.integers(-8, 8, size)
        table = pa.table({"shop": rng.integers(0, 50, size), "sold": at, "amount": amount})
        pq.write_table(table, root / "sales" / f"{number}.parquet", row_group_size=50_000)
    return root


QUERIES = {
    "sums": "SELECT shop, sold, sum(amount) AS x FROM sales GROUP BY shop, sold",
    "means": "SELECT shop, sold, avg(amount) AS x FROM sales GROUP BY shop, sold",
    "deviations": "SELECT shop, sold, stddev(amount) AS x FROM sales GROUP BY ALL",
    "correlations": "SELECT shop, sold, corr(amount, shop + amount) AS x FROM sales GROUP BY ALL",
    "kahan": "SELECT shop, sold, fsum(amount) AS x FROM sales GROUP BY ALL",
    "weighted": "SELECT shop, sold, wavg(amount, amount + 1) AS x FROM sales GROUP BY ALL",
    "first": "SELECT shop, sold, first(amount) AS x FROM sales GROUP BY shop, sold",
    "any": "SELECT shop, sold, any_value(amount) AS x FROM sales GROUP BY shop, sold",
    "windows": "SELECT DISTINCT shop, sold, sum(amount) OVER (PARTITION BY shop ORDER BY sold) AS x FROM sales",
    "ties": "SELECT shop, sold, amount AS x FROM sales QUALIFY row_number() OVER (PARTITION BY shop, sold) = 1",
    "distinct on": "SELECT DISTINCT ON (shop, sold) shop, sold, amount AS x FROM sales",
    "limits": "SELECT shop, sold, amount AS x FROM sales LIMIT 5000",
    "nested": "SELECT shop, sold, amount - (SELECT avg(amount) FROM sales) AS x FROM sales WHERE shop < 3",
    "joined": "SELECT s.shop, s.sold, s.amount / d.total AS x FROM sales s "
    "JOIN (SELECT shop, sum(amount) AS total FROM sales GROUP BY shop) d ON s.shop = d.shop WHERE s.shop < 3",
    "rows alone": "SELECT shop, sold, amount * 2 AS x FROM sales WHERE shop < 3",
}


@pytest.mark.parametrize("sql", QUERIES.values(), ids=QUERIES)
def test_a_run_over_an_untouched_source_appends_nothing(many_sales: Path, tmp_path: Path, sql: str) -> None:
    (tmp_path / "feature_store.yaml").write_text("project: shop\nengine: {threads: 4}\n")
    (tmp_path / "sales").symlink_to(many_sales / "sales")
    source = ParquetSource("sales", "sales/*.parquet", "sold")
    view = FeatureView("shops", entities=[SHOP], source=source, schema=[Field("x", Float64)], sql=sql, online=False)
    with FeatureStore(tmp_path, clock=ManualClock(NOW)) as store:
        store.apply([view])
        (first,) = store.materialize_incremental()
        again = [succeeded(materialize(store.workspace, day(0), day(40)))[0] for _ in range(3)]
    assert first.appended > 50
    assert [run.appended for run in again] == [0, 0, 0]


def test_two_direct_sets_of_one_frame_are_equal(many_sales: Path) -> None:
    source = ParquetSource("sales", "sales/*.parquet", "sold")
    schema = [Field("x", Float64), Field("last", Array(Float64))]
    sql = "SELECT shop, sold, sum(amount) AS x, list(amount)[:9] AS last FROM sales GROUP BY ALL"
    view = FeatureView("shops", entities=[SHOP], source=source, schema=schema, sql=sql, online=False)
    (many_sales / "feature_store.yaml").write_text("project: shop\nengine: {threads: 4}\n")
    at = pa.array([day(20)] * 50, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    frame = pa.table({"shop": range(50), "event_timestamp": at})
    with FeatureStore(many_sales, clock=ManualClock(NOW)) as store:
        sets = [store.get_historical_features(frame, view, direct=True).to_arrow() for _ in range(3)]
    assert sets[0].column("x").null_count == 0
    assert sets[1].equals(sets[0])
    assert sets[2].equals(sets[0])


@pytest.mark.parametrize(
    "call",
    [
        *("random()", "uuid()", "now()", "current_date", "today()", "current_timestamp", "age(sold)", "txid_current()"),
        *(
            "get_current_timestamp()",
            "current_localtime()",
            "current_localtimestamp()",
            "uuidv7()",
            "get_current_time()",
        ),
        *("ago(INTERVAL 1 DAY)", "localtimestamp", "localtime", "current_time", "transaction_timestamp()"),
    ],
)
def test_sql_that_answers_something_else_each_time_is_refused(many_sales: Path, call: str) -> None:
    (many_sales / "feature_store.yaml").write_text("project: shop\n")
    source = ParquetSource("sales", "sales/*.parquet", "sold")
    sql = f"SELECT shop, sold, CAST({call} AS VARCHAR) = 'x' AS x FROM sales"
    with FeatureStore(many_sales, clock=ManualClock(NOW)) as store:
        with pytest.raises(SourceSchemaError, match="whose result changes from call to call") as refused:
            store.plan([FeatureView("shops", entities=[SHOP], source=source, sql=sql)])
        assert "'shops'" in str(refused.value)
        kept = "SELECT shop, sold, age(sold, TIMESTAMPTZ '2024-01-01') > INTERVAL 1 DAY AS x FROM sales"
        store.plan([FeatureView("shops", entities=[SHOP], source=source, sql=kept)])


@dataclass(frozen=True)
class Sale:
    shop: int
    at: int
    known: int
    amount: int


def write(root: Path, sales: list[Sale]) -> None:
    instant = pa.timestamp("us", tz="UTC")
    table = pa.table(
        {
            "shop": [sale.shop for sale in sales],
            "sold": pa.array([sale.at for sale in sales], pa.int64()).cast(instant),
            "known": pa.array([sale.known for sale in sales], pa.int64()).cast(instant),
            "amount": [sale.amount for sale in sales],
        }
    )
    pq.write_table(table, root / "sales.parquet")


LATE = Sale(1, day(2), day(12), 100)
"""Of the second day, known on the twelfth."""
PUNCTUAL = [Sale(1, day(number), day(number + 0.1), number) for number in range(1, 11)]
RUNNING_SUM = (
    "SELECT shop, sold, {} AS known, (sum(amount) OVER w)::BIGINT AS x FROM sales "
    "WINDOW w AS (PARTITION BY shop ORDER BY sold)"
)
DAILY = (
    "SELECT shop, date_trunc('day', sold) AS sold, {} AS known, sum(amount)::BIGINT AS x FROM sales "
    "GROUP BY shop, date_trunc('day', sold)"
)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[FeatureStore]:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    write(tmp_path, PUNCTUAL)
    with FeatureStore(tmp_path, clock=ManualClock(day(11))) as store:
        yield store


def totals(sql: str) -> FeatureView:
    source = ParquetSource("sales", "sales.parquet", "sold", created_timestamp_field="known")
    return FeatureView("totals", entities=[SHOP], source=source, schema=[Field("x", Int64)], sql=sql)


def values_at(store: FeatureStore, *instants: int) -> tuple[list[int | None], str]:
    at = pa.array(instants, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    frame = pa.table({"shop": [1] * len(instants), "event_timestamp": at})
    training = store.get_historical_features(frame, "totals:x")
    return training.to_arrow().column("x").to_pylist(), training.certificate.views[0].rests_on


@pytest.mark.parametrize("sql", [RUNNING_SUM, DAILY])
def test_a_late_row_is_found_and_the_certificate_says_where_no_check_sees_it(shop: FeatureStore, sql: str) -> None:
    """The wrong pattern: the output's created time is that of one of the rows."""
    wrong = sql.format("known" if sql is RUNNING_SUM else "min(known)")
    plan = shop.plan([totals(wrong)])
    said = " ".join(line.text for line in explain(plan))
    assert "known is not shown to be the greatest created time" in said
    assert "select max(known) AS known" in said
    shop.apply_plan(plan)
    succeeded(materialize_incremental(shop.workspace, day(11)))
    (before,), note = values_at(shop, day(5))
    assert "a late row may change values of the past" in note
    write(shop.root, [*PUNCTUAL, LATE])
    shop.workspace.clock.now_us = day(13)  # type: ignore[attr-defined]
    (run,) = succeeded(materialize_incremental(shop.workspace))
    assert run.appended > 0
    changed = {RUNNING_SUM: (10, 110), DAILY: (4, 4)}[sql]
    (after, of_its_day), _ = values_at(shop, day(5), day(2.5))
    assert (before, after) == changed  # the leak that the note speaks of, where there is one
    assert of_its_day == 100 + (3 if sql is RUNNING_SUM else 2)


@pytest.mark.parametrize("sql", [RUNNING_SUM, DAILY])
def test_by_the_right_pattern_a_late_row_changes_nothing_of_the_past(shop: FeatureStore, sql: str) -> None:
    right = sql.format("max(known) OVER w" if sql is RUNNING_SUM else "max(known)")
    plan = shop.plan([totals(right)])
    assert "created times" not in " ".join(line.text for line in explain(plan))
    shop.apply_plan(plan)
    succeeded(materialize_incremental(shop.workspace, day(11)))
    middays = [day(number + 0.5) for number in range(1, 11)]
    before, note = values_at(shop, *middays)
    write(shop.root, [*PUNCTUAL, LATE])
    shop.workspace.clock.now_us = day(13)  # type: ignore[attr-defined]
    succeeded(materialize_incremental(shop.workspace))
    (*after, newest), note_after = values_at(shop, *middays, day(12.5))
    assert (after, note_after) == (before, note)
    assert (before[4], note) == ({RUNNING_SUM: 15, DAILY: 5}[sql], "")
    assert newest == {RUNNING_SUM: 155, DAILY: 10}[sql]
