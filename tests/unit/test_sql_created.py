"""What a view's SQL shows of its created time: each query with the answer that a person gives."""

import pytest

from featurestore.definitions.sql import depends_on_order
from featurestore.definitions.sql_created import created_follows

SOURCES = (("sales", "recorded_at"), ("prices", "loaded_at"))

FOLLOWS = [
    "SELECT * FROM sales",
    "SELECT k, sold_at, recorded_at, amount * 2 AS double FROM sales WHERE amount > 1",
    "SELECT k, day, max(recorded_at) AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day",
    "SELECT k, day, MAX(s.Recorded_At) AS recorded_at, sum(amount) AS total FROM sales AS s GROUP BY ALL",
    "SELECT k, greatest(max(recorded_at), max(sold_at)) AS recorded_at, count(*) AS n FROM sales GROUP BY k",
    "SELECT k, day, recorded_at, sum(amount) AS total FROM sales GROUP BY k, day, recorded_at",
    "SELECT k, day, recorded_at, sum(amount) AS total FROM sales GROUP BY 1, 2, 3",
    "SELECT k, day, recorded_at, sum(amount) AS total FROM sales GROUP BY ALL",
    "SELECT k, sold_at, sum(amount) OVER w AS total, max(recorded_at) OVER w AS recorded_at FROM sales "
    "WINDOW w AS (PARTITION BY k ORDER BY sold_at)",
    "SELECT k, sold_at, avg(amount) OVER (PARTITION BY k ORDER BY sold_at) AS mean, "
    "max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at FROM sales",
    "SELECT k, sold_at, lag(amount) OVER (PARTITION BY k ORDER BY sold_at) AS before, "
    "max(recorded_at) OVER (PARTITION BY k) AS recorded_at FROM sales",
    "WITH daily AS (SELECT k, day, max(recorded_at) AS known, sum(amount) AS total FROM sales GROUP BY k, day) "
    "SELECT k, day, known AS recorded_at, total FROM daily",
    "SELECT * FROM (SELECT k, day, max(recorded_at) AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day)",
    "SELECT * FROM sales QUALIFY row_number() OVER (PARTITION BY k, sold_at ORDER BY recorded_at DESC) = 1",
    "SELECT k, sold_at, recorded_at FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY recorded_at DESC) "
    "AS rn FROM sales) WHERE rn = 1",
    "SELECT s.k, s.sold_at, greatest(s.recorded_at, p.loaded_at) AS recorded_at, price "
    "FROM sales s JOIN prices p USING (k)",
    "SELECT s.k, s.recorded_at, city FROM sales s JOIN towns t USING (k)",  # towns declares no created time
    "SELECT k, sold_at, recorded_at FROM sales UNION ALL SELECT k, sold_at, loaded_at AS recorded_at FROM prices",
    "SELECT DISTINCT k, sold_at, recorded_at FROM sales",
    "SELECT k, recorded_at, city FROM sales JOIN towns USING (k)",
    "SELECT * FROM sales JOIN towns USING (k)",
    "SELECT s.*, city FROM sales s LEFT JOIN towns t USING (k)",
    "SELECT k, sold_at, rank() OVER (PARTITION BY k ORDER BY sold_at) AS place, "
    "max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at FROM sales",
    "SELECT k, sold_at, lag(amount, 2) OVER (PARTITION BY k ORDER BY sold_at) AS earlier, "
    "max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at FROM sales",
    "SELECT k, sold_at, sum(amount) FILTER (amount > 0) OVER (PARTITION BY k ORDER BY sold_at) AS total, "
    "max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at FROM sales",
    "SELECT k, sold_at, coalesce(recorded_at, sold_at) AS recorded_at, amount FROM sales",
    *(
        f"SELECT k, sold_at, CAST(recorded_at AS {kind}) AS recorded_at, amount FROM sales"
        for kind in ("TIMESTAMP", "TIMESTAMPTZ", "TIMESTAMP_NS")
    ),
    "SELECT k, sold_at, max(coalesce(recorded_at, sold_at))::TIMESTAMPTZ AS recorded_at, sum(x) AS n FROM sales "
    "GROUP BY k, sold_at",
    "SELECT k, coalesce(max(recorded_at), max(sold_at)) AS recorded_at, count(*) AS n FROM sales GROUP BY k",
    "SELECT k, coalesce(recorded_at, sold_at) AS recorded_at, sum(x) AS n FROM sales GROUP BY ALL",
    "SELECT * EXCLUDE (amount) REPLACE (recorded_at::TIMESTAMPTZ AS Recorded_At) FROM sales",
    "SELECT s.* EXCLUDE (recorded_at), s.recorded_at FROM sales AS s",
    "SELECT k, max(recorded_at) AS recorded_at, count(*) AS n FROM sales GROUP BY k HAVING count(*) >= 3",
    "SELECT k, sold_at, recorded_at FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY recorded_at DESC) "
    "AS rn FROM sales) WHERE (rn = 1) AND amount > 3 AND k > 2",
    "SELECT * FROM sales QUALIFY row_number() OVER (PARTITION BY k ORDER BY recorded_at DESC) = 1 AND amount > 3",
]

OVER = "OVER (PARTITION BY k ORDER BY sold_at)"
FRAME = "OVER (PARTITION BY k ORDER BY sold_at ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)"
DOES_NOT = [
    "SELECT s.*, p.price FROM sales s LEFT JOIN prices p USING (k)",
    "SELECT s.*, p.price FROM sales s ASOF JOIN prices p ON s.k = p.k AND s.sold_at >= p.loaded_at",
    "SELECT * FROM sales JOIN prices USING (k)",
    "SELECT s.k, coalesce(s.recorded_at, p.loaded_at) AS recorded_at, price FROM sales s JOIN prices p USING (k)",
    "SELECT s.k, least(s.recorded_at, p.loaded_at) AS recorded_at, price FROM sales s JOIN prices p USING (k)",
    *(
        f"SELECT k, day, {made} AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day"
        for made in (
            "max(CASE WHEN amount > 0 THEN recorded_at END)",
            "least(max(recorded_at), max(sold_at))",
            "greatest(min(recorded_at), max(sold_at))",
            "max(recorded_at) - INTERVAL 1 DAY",
            "CAST(max(recorded_at) AS DATE)",
            "max(recorded_at, 1)[1]",
        )
    ),
    "SELECT k, date_trunc('day', recorded_at) AS recorded_at, sum(amount) AS n FROM sales GROUP BY ALL",
    "SELECT k, CAST(recorded_at AS DATE) AS recorded_at, amount FROM sales",
    f"SELECT k, sold_at, max(recorded_at) {OVER} AS recorded_at, lag(x, -1) {OVER} AS n FROM sales",
    f"SELECT k, sold_at, max(recorded_at) {OVER} AS recorded_at, ntile(4) {OVER} AS n FROM sales",
    f"SELECT k, sold_at, max(recorded_at) {FRAME} AS recorded_at, rank() {FRAME} AS n FROM sales",
    f"SELECT k, sold_at, max(recorded_at) {OVER} AS recorded_at, kahan_sum(x) {OVER} AS n FROM sales",
    f"SELECT k, sold_at, greatest(max(sold_at) {OVER}, recorded_at) AS recorded_at, sum(x) {OVER} AS n FROM sales",
    "SELECT k, sold_at, max(recorded_at) OVER w AS recorded_at, lead(x) OVER w AS n FROM sales "
    "WINDOW w AS (PARTITION BY k ORDER BY sold_at)",
    "SELECT k, day, min(recorded_at) AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day",
    "SELECT k, day, any_value(recorded_at) AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day",
    "SELECT k, day, max(recorded_at) FILTER (amount > 0) AS recorded_at, sum(amount) AS total FROM sales GROUP BY ALL",
    "SELECT k, day, day AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day",
    "SELECT k, day, max(day) AS recorded_at, sum(amount) AS total FROM sales GROUP BY k, day",
    "SELECT k, sold_at, sold_at AS recorded_at FROM sales",
    "SELECT k, sold_at, recorded_at, sum(amount) OVER (PARTITION BY k ORDER BY sold_at) AS total FROM sales",
    "SELECT *, sum(amount) OVER (PARTITION BY k ORDER BY sold_at) AS total FROM sales",
    "SELECT k, sold_at, max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at, "
    "sum(amount) OVER (PARTITION BY k) AS total FROM sales",
    "SELECT k, sold_at, max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at, "
    "sum(amount) OVER (PARTITION BY shop ORDER BY sold_at) AS total FROM sales",
    "SELECT k, sold_at, max(recorded_at) OVER (PARTITION BY k ORDER BY sold_at) AS recorded_at, "
    "lead(amount) OVER (PARTITION BY k ORDER BY sold_at) AS next FROM sales",
    "SELECT s.k, s.sold_at, s.recorded_at, mean FROM sales s JOIN (SELECT k, avg(amount) AS mean FROM sales "
    "GROUP BY k) USING (k)",
    "WITH means AS (SELECT k, avg(amount) AS mean FROM sales GROUP BY k), again AS (SELECT * FROM means) "
    "SELECT s.k, s.sold_at, s.recorded_at, mean FROM sales s JOIN again a USING (k)",
    "SELECT k, sold_at, recorded_at, (SELECT avg(amount) FROM sales) AS mean FROM sales",
    "SELECT a.k, a.sold_at, a.recorded_at, b.amount FROM sales a JOIN sales b ON a.k = b.k AND b.sold_at < a.sold_at",
    "SELECT s.k, s.sold_at, s.recorded_at, price FROM sales s JOIN prices p USING (k)",
    "SELECT k, sold_at, recorded_at FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY sold_at DESC) AS rn "
    "FROM sales) WHERE rn = 2",
    "SELECT * FROM sales QUALIFY row_number() OVER (PARTITION BY k ORDER BY sold_at DESC) = 2",
    "SELECT k, sold_at, recorded_at FROM sales UNION ALL SELECT k, sold_at, sold_at AS recorded_at FROM prices",
    "SELECT k, day, sum(amount) AS total, max(recorded_at) FILTER (amount > 0) OVER () AS recorded_at FROM sales "
    "GROUP BY k, day",
    *(
        f"SELECT k, sold_at, recorded_at FROM (SELECT *, row_number() OVER (PARTITION BY k ORDER BY sold_at) AS rn "
        f"FROM sales) WHERE {condition}"
        for condition in ("NOT rn = 1", "rn = 1 OR amount > 3", "(rn = 1) = false", "(rn = 1 OR k = 2) AND amount > 3")
    ),
    *(
        f"SELECT * FROM sales QUALIFY {condition}"
        for condition in (f"NOT row_number() {OVER} = 1", f"row_number() {OVER} = 1 OR amount > 3")
    ),
    "SELECT * REPLACE (sold_at AS recorded_at) FROM sales",
    "SELECT s.* REPLACE (recorded_at - INTERVAL 1 DAY AS Recorded_At) FROM sales s",
    "SELECT * EXCLUDE (recorded_at), sold_at AS recorded_at FROM sales",
    "SELECT * RENAME (recorded_at AS known, sold_at AS recorded_at) FROM sales",
    "SELECT * EXCLUDE (recorded_at) FROM sales",
    "SELECT * LIKE '%recorded%' FROM sales",
    "SELECT k, sold_at, recorded_at FROM sales EXCEPT SELECT k, sold_at, loaded_at FROM prices",
    "SELECT k, sold_at, recorded_at FROM sales INTERSECT SELECT k, sold_at, loaded_at AS recorded_at FROM prices",
    "SELECT k, max(recorded_at) AS recorded_at, sum(x) AS n FROM sales GROUP BY k HAVING count(*) = 1",
    "SELECT k, max(recorded_at) AS recorded_at, sum(x) AS n FROM sales GROUP BY k HAVING count(*) > 1 AND sum(x) < 9",
    "SELECT k, sold_at, recorded_at FROM sales ORDER BY amount LIMIT 10",
    "SELECT k, sold_at, recorded_at FROM sales ORDER BY amount OFFSET 10",
    "SELECT k, sold_at, TRY_CAST(recorded_at AS TIMESTAMP) AS recorded_at FROM sales",
    "SELECT k, sold_at, CAST(recorded_at AS TIMESTAMP_S) AS recorded_at FROM sales",
    "SELECT k, sold_at, coalesce(recorded_at, TIMESTAMP '2000-01-01') AS recorded_at FROM sales",
    f"SELECT k, sold_at, coalesce(sold_at, max(recorded_at) {OVER}) AS recorded_at, sum(x) {OVER} AS n FROM sales",
    "SELECT k, day, coalesce(max(sold_at), max(recorded_at)) AS recorded_at, sum(x) AS n FROM sales GROUP BY k, day",
    "SELECT * FROM sales QUALIFY row_number() OVER (PARTITION BY k ORDER BY recorded_at DESC) = 1 "
    "AND amount > (SELECT avg(amount) FROM sales)",
]


@pytest.mark.parametrize("sql", FOLLOWS)
def test_the_created_time_is_the_greatest_of_what_a_row_is_made_of(sql):
    assert created_follows(sql, "recorded_at", SOURCES)


@pytest.mark.parametrize("sql", DOES_NOT)
def test_a_late_row_changes_values_without_a_word(sql):
    assert not created_follows(sql, "recorded_at", SOURCES)


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("SELECT k, amount FROM sales", False),
        ("SELECT k, our_own_function(amount) AS amount FROM sales", True),  # which may be an aggregate
        ("SELECT k, sum(amount) AS amount FROM sales", True),
        ("SELECT * FROM sales LIMIT 3", True),
        ("SELECT * FROM sales ASOF JOIN prices USING (k, sold_at)", True),
    ],
)
def test_what_depends_on_the_order_of_rows(sql, wanted):
    assert depends_on_order(sql) is wanted
