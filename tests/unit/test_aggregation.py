"""Aggregations and views with them: names, resolutions, types, and what is refused."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.definitions.aggregation import MOST_TILES, window_text
from featurestore.errors import DefinitionError
from featurestore.plan.classes import ChangeClass, differences
from featurestore.registered.records import from_records, to_record
from featurestore.types import Array, Bool, Bytes, Date, Decimal, Float32, Float64, Int32, Int64, String, Timestamp
from featurestore.types.values import ValueType

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CUSTOMER = Entity("customer", join_keys={"customer_id": Int64})
SOURCE = ParquetSource("purchases_file", "purchases.parquet", "bought_at", "known_at")
SUM = Aggregation("amount", "sum", windows=[7 * DAY])


def view(*aggregations: Aggregation, **options: Any) -> FeatureView:
    given = {"entities": [CUSTOMER], "source": SOURCE, "aggregations": list(aggregations) or None, **options}
    return FeatureView("purchases", **given)


def names(*aggregations: Aggregation) -> list[str]:
    return [window.name for aggregation in aggregations for window in aggregation.features]


def test_features_are_called_by_column_function_and_window() -> None:
    windows = [timedelta(minutes=1), timedelta(minutes=90), 24 * HOUR, 30 * DAY, timedelta(seconds=3605), None]
    resolution = Aggregation("a", "sum", windows=[timedelta(seconds=3605)], resolution=timedelta(seconds=103))
    assert names(Aggregation("amount", "sum", windows=[w for w in windows if w != timedelta(seconds=3605)])) == [
        "amount_sum_1min",
        "amount_sum_90min",
        "amount_sum_1d",
        "amount_sum_30d",
        "amount_sum_all",
    ]
    assert names(resolution) == ["a_sum_3605s"]
    assert names(Aggregation("merchant", "last_n", n=5, windows=[7 * DAY])) == ["merchant_last_5_7d"]
    assert names(Aggregation("*", "count", windows=[HOUR, None])) == ["count_1h", "count_all"]
    assert names(Aggregation("amount", "sum", windows=[7 * DAY], name="refunds", where="amount < 0")) == ["refunds_7d"]
    assert [window_text(window) for window in windows] == ["1min", "90min", "1d", "30d", "3605s", "all"]


@pytest.mark.parametrize(
    ("window", "resolution"),
    [
        (timedelta(minutes=1), timedelta(seconds=5)),
        (timedelta(minutes=12), timedelta(minutes=1)),
        (HOUR, timedelta(minutes=5)),
        (12 * HOUR, HOUR),
        (11 * HOUR, timedelta(minutes=5)),
        (DAY, HOUR),
        (7 * DAY, HOUR),
        (30 * DAY, DAY),
        (84 * DAY, 7 * DAY),
        (360 * DAY, 30 * DAY),
        (365 * DAY, DAY),
    ],
)
def test_the_resolution_divides_the_window_and_is_at_most_a_twelfth(window: timedelta, resolution: timedelta) -> None:
    (found,) = Aggregation("amount", "sum", windows=[window]).features
    assert timedelta(microseconds=found.resolution_us) == resolution
    assert window % resolution == timedelta(0)
    assert resolution * 12 <= window
    assert window // resolution <= MOST_TILES


def test_a_window_begins_where_its_oldest_tile_does() -> None:
    day, hour = (length // timedelta(microseconds=1) for length in (DAY, HOUR))
    (of_day, all_rows) = Aggregation("amount", "sum", windows=[DAY, None]).features
    assert of_day.begins_us(10 * day) == 9 * day
    assert of_day.begins_us(10 * day + hour - 1) == 9 * day
    assert of_day.begins_us(10 * day - 1) == 9 * day - hour
    assert of_day.begins_us(-1) == -day - hour
    assert all_rows.begins_us(0) is None
    assert view(SUM).reach_us == 7 * day + hour
    assert view(SUM).reaches_back_to(10 * day + 5) == 3 * day + 1
    assert view(Aggregation("amount", "sum", windows=[DAY, None])).reach_us is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("amount", "avg"), "it is called 'mean' here"),
        (("amount", "STDDEV"), "it is called 'std' here"),
        (("amount", "approx_count_distinct"), "it is called 'count_distinct' here"),
        (("amount", "summ"), r"Did you mean 'sum'\?$"),
        (("amount", "COUNT"), r"there is no 'COUNT': it is called 'count' here\.$"),
        (("amount", "approx_median"), "'approx_median': compute it of the list that last_n gives, or in SQL"),
        (("amount", "what"), r"last_n, count_distinct\.$"),
        (("*", "sum"), "'*' is for a count of rows"),
        (("two words", "sum"), "column: a column name is"),
        (("amount", "sum", {"windows": []}), "windows: needs at least one"),
        (("amount", "sum", {"windows": DAY}), "windows: must be a list"),
        (("amount", "sum", {"windows": ["7d"]}), r"must be a timedelta, such as timedelta\(days=7\) \(got '7d'\)"),
        (("amount", "sum", {"windows": [DAY, 24 * HOUR]}), "the same window is given twice"),
        (("amount", "sum", {"windows": [timedelta(seconds=59)]}), "at least a minute"),
        (("amount", "sum", {"windows": [timedelta(seconds=90.5)]}), "must be whole seconds"),
        (("amount", "sum", {"windows": [-DAY]}), "at least a minute"),
        (("amount", "sum", {"windows": [timedelta(0)], "resolution": timedelta(seconds=5)}), "at least a minute"),
        (("amount", "sum", {"windows": [730 * DAY]}), r"give one, such as resolution=datetime.timedelta\(days=2\)"),
        (("amount", "sum", {"windows": [timedelta(seconds=61)]}), "has no resolution of its own"),
        (("amount", "sum", {"resolution": timedelta(seconds=4)}), "whole seconds, at least 5"),
        (("amount", "sum", {"resolution": timedelta(minutes=11)}), "does not divide the window 7d"),
        (
            ("amount", "sum", {"resolution": timedelta(minutes=10)}),
            "makes 1,008 tiles of the window 7d, and 400 are the most: take 1:00:00, for one",
        ),
        (("amount", "sum", {"windows": [None], "resolution": HOUR}), "so it takes no resolution"),
        (("amount", "last_n"), "Aggregation 'amount_last_n': n: last_n needs to know how many"),
        (("amount", "last_n", {"n": 0}), "n: must be from 1 to 100"),
        (("amount", "last_n", {"n": 101}), "n: must be from 1 to 100"),
        (("amount", "count_distinct", {"n": 10_001}), "n: must be from 1 to 10,000"),
        (("amount", "sum", {"n": 3}), "n: a sum takes none"),
        (("amount", "sum", {"name": "two words"}), "name: a column name is"),
        (("amount", "sum", {"name": "fs_mine"}), "this column name is reserved"),
        (("a" * 121, "sum"), "name: a column name is"),
        (("amount", "sum", {"where": "amount <"}), "'amount <' cannot be parsed: something is missing at its end"),
        (("amount", "sum", {"where": "amount > 0\nAND AND x"}), r"no sense beyond 'amount > 0\\nAND AND'\.$"),
        (("amount", "sum", {"where": "amount > 0 AND AND x"}), r"no sense beyond 'amount > 0 AND AND'\.$"),
        (("amount", "sum", {"where": "amount = 'a"}), "a quote or a comment in it does not end"),
        (("amount", "sum", {"where": ""}), "must be one condition"),
        (("amount", "sum", {"where": "true"}), "reads no column"),
        (("amount", "sum", {"where": "amount < 0) OR (1 = 1"}), "must be one condition"),
        (("amount", "sum", {"where": "amount < (SELECT 1)"}), "has a query in it"),
        (("amount", "sum", {"where": "sum(amount) > 3"}), "has an aggregate"),
        (("amount", "sum", {"where": "amount < now()"}), r"calls now\(\), whose result changes from call to call"),
        (("amount", "sum", {"where": "amount < Random()"}), r"calls random\(\), .* such as id % 100 < 10 for a share"),
        (("amount", "sum", {"where": "p.amount < 0"}), "write 'amount' instead of 'p.amount'"),
        (("amount", "sum", {"where": "amount < ?"}), "has a parameter"),
    ],
)
def test_what_makes_no_sense_is_refused(given: tuple[Any, ...], message: str) -> None:
    column, function, *more = given
    options = {"windows": [7 * DAY], **(more[0] if more else {})}
    with pytest.raises(DefinitionError, match=message):
        Aggregation(column, function, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttl": DAY}, "its windows say how long an event counts"),
        ({"event_id": "bought_at"}, "is a join key or a time"),
        ({"event_id": "no name"}, "is no column's name"),
        ({"source": PushSource("purchases_push", SOURCE)}, "a push may be repeated"),
        ({"schema": [Field("amount", String)]}, "a sum takes no String"),
        ({"schema": [Field("amount", Decimal(5, 1))]}, r"with a cast in sql=, such as CAST\(amount \* 100 AS BIGINT\)"),
        ({"schema": [Field("other", Int64)]}, "schema: lacks 'amount': its aggregations read 'amount'"),
        ({"event_id": "id", "schema": [Field("amount", Int64)]}, "schema: lacks 'id': its event_id is 'id'"),
        ({"sql": "SELECT amount < FROM purchases_file"}, "cannot be parsed: something is missing. Line 1"),
        ({"schema": [Field("amount", Int64), Field("other", Int64)]}, "no aggregation reads 'other'"),
        (
            {"event_id": "id", "schema": [Field("amount", Int64), Field("id", Float64)]},
            "FeatureView 'purchases': event_id: column 'id' is Float64",
        ),
        (
            {"aggregations": [SUM, Aggregation("amount", "sum", windows=[7 * DAY], where="amount < 0")]},
            "differ in where alone",
        ),
        ({"aggregations": [SUM, Aggregation("price", "sum", windows=[7 * DAY], name="amount_sum")]}, "give one a name"),
        ({"aggregations": [SUM, SUM]}, "the same aggregation is given twice"),
        ({"aggregations": [SUM, SUM.model_copy()]}, "the same aggregation is given twice"),
        ({"aggregations": [Aggregation("CUSTOMER_ID", "count_distinct", windows=[DAY])]}, "is a join key"),
        ({"aggregations": [Aggregation("known_at", "last", windows=[DAY])]}, "is the created time"),
        (
            {"aggregations": [SUM, Aggregation("x", "last", windows=[7 * DAY], name="AMOUNT_SUM")]},
            "differ only in case",
        ),
        ({"aggregations": None, "event_id": "id"}, "only a view with aggregations"),
        ({"aggregations": []}, "needs at least one. Leave it out"),
    ],
)
def test_views_refuse_what_events_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        view(**{"aggregations": [SUM], **options})


TYPES: dict[str, tuple[ValueType, ...]] = {
    "count": (Int32, Float32, Bool, String, Bytes, Date, Timestamp, Decimal(5, 1), Array(Int64)),
    "sum": (Int32, Int64, Float32, Float64, Bool),
    "min": (Int32, Int64, Float32, Float64, Date, Timestamp),
    "last": (Int32, Int64, Float32, Float64, Date, Timestamp, Bool, String, Bytes),
}


def test_types_follow_from_the_columns() -> None:
    def kind(function: str, column: ValueType, **more: Any) -> ValueType:
        made = Aggregation("x", function, windows=[DAY], **more)
        return view(made, schema=[Field("x", column)]).features[0].type

    def refused(function: str, column: ValueType, **more: Any) -> bool:
        try:
            kind(function, column, **more)
        except DefinitionError:
            return True
        return False

    assert [kind("sum", column) for column in TYPES["sum"]] == [Int64, Int64, Float64, Float64, Int64]
    for function in ("mean", "var", "std"):
        assert {kind(function, column) for column in TYPES["sum"]} == {Float64}
    for function in ("min", "max"):
        assert [kind(function, column) for column in TYPES["min"]] == list(TYPES["min"])
    for function in ("first", "last"):
        assert [kind(function, column) for column in TYPES["last"]] == list(TYPES["last"])
    assert [kind("last_n", column, n=2) for column in TYPES["last"]] == [Array(column) for column in TYPES["last"]]
    assert {kind("count", column) for column in TYPES["count"]} == {Int64}
    assert {kind("count_distinct", column) for column in TYPES["last"]} == {Int64}
    assert all(
        refused(function, column) for function in ("sum", "mean", "var", "std") for column in (String, Date, Bytes)
    )
    assert all(refused(function, column) for function in ("min", "max") for column in (Bool, String, Bytes))
    assert all(refused("last", column) for column in (Decimal(5, 1), Array(Int64)))
    assert view(Aggregation("bought_at", "last", windows=[None])).features[0].type == Timestamp


def test_a_view_keeps_the_columns_that_it_needs() -> None:
    made = view(
        SUM,
        Aggregation(
            "Merchant", "last", windows=[None], where="channel = 'web' AND AMOUNT > 0 AND bought_at > '2024-01-01'"
        ),
        Aggregation("*", "count", windows=[DAY], name="of_me", where="customer_id = 3"),
        event_id="order_id",
        schema=[Field("channel", String), Field("merchant", String), Field("amount", Int64), Field("order_id", Int64)],
    )
    assert made.events is not None
    assert made.events.stored == ("order_id", "amount", "Merchant", "channel")
    assert [field.name for field in made.stored] == ["channel", "merchant", "amount", "order_id"]
    assert made.made_of("Merchant_last_all") == ("amount", "Merchant", "channel")
    assert made.made_of("of_me_1d") == ()
    assert made[["amount_sum_7d"]].features[0].description == "sum of amount over the last 7d"
    assert made.feature("of_me_1d").description == "number of events over the last 1d where customer_id = 3"
    assert "event_id='order_id'" in repr(made)
    assert repr(made.aggregations[0]) == "Aggregation('amount', 'sum', windows=[datetime.timedelta(days=7)])"


def applied(made: FeatureView) -> FeatureView:
    """Return a view as the registry gives it back."""
    records = [to_record("p", part) for part in (CUSTOMER, SOURCE, made)]
    found = from_records(records)["feature_view", made.name]
    assert isinstance(found, FeatureView)
    return found


ALL = [
    Aggregation("amount", "sum", windows=[HOUR, None]),
    Aggregation("amount", "last_n", n=3, windows=[7 * DAY], resolution=12 * HOUR, name="newest", where="amount > 0"),
]


def test_the_registry_gives_a_view_back_as_it_was() -> None:
    made = view(*ALL, event_id="id", schema=[Field("id", String), Field("amount", Int64)])
    assert applied(made) == made
    record = to_record("p", made)
    assert [(field.name, field.type, field.inputs) for field in record.fields] == [
        ("amount_sum_1h", "Int64", ("purchases_file.amount",)),
        ("amount_sum_all", "Int64", ("purchases_file.amount",)),
        ("newest_7d", "Array(Int64)", ("purchases_file.amount",)),
    ]
    plain = FeatureView("plain", entities=[CUSTOMER], source=SOURCE, schema=[Field("amount", Int64)])
    assert not {"aggregations", "event_id"} & to_record("p", plain).document.keys()


FIELDS = [Field("id", String), Field("amount", Int64)]
PRICE = Field("price", Int64)
METADATA, COMPATIBLE, REBUILD, BREAKING = list(ChangeClass)[:4]
SUMS, NEWEST = ALL


def of_amount(function: str, *windows: timedelta | None, **more: Any) -> Aggregation:
    return Aggregation("amount", function, windows=windows, **more)


def newest(where: str) -> Aggregation:
    return of_amount("last_n", 7 * DAY, n=3, resolution=12 * HOUR, name="newest", where=where)


BEFORE = view(*ALL, event_id="id", schema=FIELDS)


@pytest.mark.parametrize(
    ("after", "wanted", "is_new"),
    [
        ({"aggregations": [SUMS]}, {"window newest_7d": BREAKING}, False),
        (
            {"aggregations": [of_amount("sum", HOUR, None, timedelta(minutes=30)), NEWEST]},
            {"window amount_sum_30min": REBUILD},
            False,
        ),
        (
            {"aggregations": [SUMS, of_amount("mean", HOUR, None), NEWEST]},
            {"window amount_mean_1h": COMPATIBLE, "window amount_mean_all": COMPATIBLE},
            False,
        ),
        ({"aggregations": [*ALL, of_amount("max", HOUR)]}, {"window amount_max_1h": REBUILD}, False),
        (
            {"aggregations": [of_amount("sum", HOUR, None, resolution=timedelta(minutes=1)), NEWEST]},
            {"window amount_sum_1h": REBUILD},
            False,
        ),
        ({"aggregations": [SUMS, newest("amount > 1")]}, {"window newest_7d": REBUILD}, False),
        (
            {"event_id": None, "schema": FIELDS[1:]},
            {"columns of events": COMPATIBLE, "event_id": REBUILD},
            True,
        ),
        (
            {"aggregations": [*ALL, Aggregation("price", "sum", windows=[HOUR])], "schema": [*FIELDS, PRICE]},
            {"columns of events": REBUILD, "window price_sum_1h": REBUILD},
            True,
        ),
        (
            {"schema": [Field("id", String), Field("amount", Float64)]},
            {
                "columns of events": REBUILD,
                "type of amount_sum_1h": BREAKING,
                "type of amount_sum_all": BREAKING,
                "type of newest_7d": BREAKING,
            },
            True,
        ),
        ({"aggregations": ALL[::-1]}, {"order of features": COMPATIBLE}, False),
    ],
)
def test_changes_have_their_classes(after: dict[str, Any], wanted: dict[str, ChangeClass], is_new: bool) -> None:
    given = {"event_id": "id", "schema": FIELDS, "aggregations": ALL, **after}
    found = differences(BEFORE, view(**given))
    assert {each.what: each.change_class for each in found} == wanted
    assert any(each.new_generation for each in found) == is_new


def test_rows_that_become_events_are_a_new_generation() -> None:
    plain = view(schema=FIELDS)
    found = differences(plain, BEFORE)
    assert found[0].what == "features are"
    assert (found[0].change_class, found[0].new_generation) == (ChangeClass.BREAKING, True)
    assert differences(BEFORE, plain)[0].new_generation


def test_features_are_computed_once_and_anew_for_a_copy() -> None:
    assert BEFORE.features is BEFORE.features
    copied = BEFORE.model_copy(update={"aggregations": ALL[:1]})
    assert [field.name for field in copied.features] == [window.name for window in copied.windows] == names(ALL[0])
    assert BEFORE.model_copy() == BEFORE == view(*ALL, event_id="id", schema=FIELDS)
