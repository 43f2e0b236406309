"""A shop whose sales are pushed and read from files, and what its windows hold by plain loops."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore import Aggregation, Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.ingest import PushResult, push
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.serving import get_online_features
from featurestore.training import TrainingSetWarning, get_historical_features
from featurestore.training.reference_windows import ReferenceEvent, reference_window
from featurestore.types import Float64, Int64, String
from featurestore.types.times import system_clock, to_datetime
from featurestore.workspace import Workspace
from support.projects import make_workspace

MINUTE_US = 60_000_000
DAY_US = 1_440 * MINUTE_US
WINDOWS = [timedelta(minutes=1), timedelta(minutes=12), None]
FUNCTIONS = ("count", "sum", "mean", "min", "max", "std", "first", "last", "count_distinct")
Sale = dict[str, Any]


def sales_view(
    windows: list[timedelta | None] = WINDOWS, aggregations: Sequence[Aggregation] | None = None
) -> FeatureView:
    batch = ParquetSource("sales_file", "sales", "sold_at", "known_at", allowed_lateness=timedelta(days=400))
    return FeatureView(
        "sales",
        entities=[Entity("shop", join_keys={"shop": Int64})],
        source=PushSource("sales_push", batch),
        schema=[Field("id", String), Field("v", Float64), Field("t", String)],
        event_id="id",
        aggregations=aggregations
        or [
            *(Aggregation("v", name, windows=windows) for name in FUNCTIONS),
            Aggregation("t", "last_n", n=3, windows=windows),
            Aggregation("*", "count", windows=windows),
            Aggregation("v", "sum", windows=windows, name="some", where="t = 'a'"),
        ],
    )


def by_plain_loops(view: FeatureView, events: list[ReferenceEvent], at_us: int) -> list[Any]:
    """Return what each window of a view holds at an instant, of one entity's events in their order."""
    return [
        reference_window(
            events,
            at_us,
            window.aggregation.function,
            column=None if window.aggregation.column == "*" else window.aggregation.column,
            is_float=window.aggregation.column == "v",
            condition=window.aggregation.where,
            length_us=window.length_us,
            resolution_us=window.resolution_us,
            n=window.aggregation.bound,
            as_of="available",
        )
        for window in view.windows
    ]


class Shop:
    """A project to which events are pushed, and what counts in it by plain loops."""

    def __init__(self, root: Path, online_url: str | None, view: FeatureView) -> None:
        self.root, self.view = root, view
        now_us = system_clock() // MINUTE_US * MINUTE_US - 60 * MINUTE_US
        self.workspace = make_workspace(root, [view], online_url=online_url, now_us=now_us)
        self.counted: dict[tuple[int, str], Sale] = {}
        self.made = 0

    @property
    def now_us(self) -> int:
        return self.workspace.clock()

    def wait(self, by_us: int) -> None:
        self.workspace.clock.now_us += by_us

    def sale(self, dice: Random, **more: Any) -> Sale:
        self.made += 1
        sold = self.now_us - dice.choice([0, dice.randrange(15 * MINUTE_US)])
        return {
            "shop": dice.randrange(4),
            "sold_at": sold,
            "id": f"e{self.made}",
            "v": dice.choice([None, dice.randrange(-500, 500) / 100, 0.1, 1e16, math.nan]),
            "t": dice.choice(["a", "b", None]),
            **more,
        }

    def push(self, sales: list[Sale], workspace: Workspace | None = None, **options: Any) -> PushResult:
        """Push events and note what should count: of a key and id the first, in a commit what happened first."""
        for sale in sorted(sales, key=_sold_at):
            known = {**sale, "known_at": max(self.now_us, sale.get("known_at") or 0), "place": len(self.counted)}
            self.counted.setdefault((sale["shop"], sale["id"]), known)
        columns = {name: [sale[name] for sale in sales] for name in ("shop", "sold_at", "id", "v", "t")}
        columns["sold_at"] = [to_datetime(at) for at in columns["sold_at"]]
        return push(workspace or self.workspace, "sales_push", columns, **options)

    def write(self, sales: list[Sale]) -> None:
        """Write events as the batch source repeats them later."""
        (self.root / "sales").mkdir(exist_ok=True)
        rows = [
            {**sale, "sold_at": to_datetime(sale["sold_at"]), "known_at": to_datetime(self.now_us)} for sale in sales
        ]
        kinds = {"shop": pa.int64(), "id": pa.string(), "v": pa.float64(), "t": pa.string()}
        times = dict.fromkeys(("sold_at", "known_at"), pa.timestamp("us", "UTC"))
        count = len(list((self.root / "sales").iterdir()))
        table = pa.Table.from_pylist(rows, schema=pa.schema(list({**kinds, **times}.items())))
        pq.write_table(table, self.root / "sales" / f"{count}.parquet")
        for sale in sorted(sales, key=_sold_at):
            known = {**sale, "known_at": self.now_us, "place": len(self.counted)}
            self.counted.setdefault((sale["shop"], sale["id"]), known)

    def run(self) -> Any:
        self.wait(1)  # a run reads what happened before it
        (done,) = succeeded(materialize_incremental(self.workspace))
        return done

    def wanted(self, shop: int) -> list[Any]:
        events = sorted(
            (
                ReferenceEvent(
                    sale["sold_at"],
                    sale["known_at"],
                    sale["place"],
                    {"v": sale["v"], "t": sale["t"]},
                    frozenset({"t = 'a'"} if sale["t"] == "a" else ()),
                )
                for (key, _), sale in self.counted.items()
                if key == shop
            ),
            key=lambda event: (event.event_us, event.known_us, event.sequence),
        )
        return by_plain_loops(self.view, events, self.now_us)

    def check(self, *, ordered: bool = True) -> None:
        """Compare online with the offline join and plain loops; not ``ordered``: ties may lie in any order."""
        found = get_online_features(self.workspace, ["sales:*"], {"shop": [0, 1, 2, 3]}).to_dict()
        at = pa.array([self.now_us] * 4, pa.timestamp("us", "UTC"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TrainingSetWarning)
            frame = pa.table({"shop": [0, 1, 2, 3], "event_timestamp": at})
            joined = get_historical_features(self.workspace, features=["sales:*"], entity_df=frame).to_arrow()
        for shop in range(4):
            for window, wanted in zip(self.view.windows, self.wanted(shop), strict=True):
                value = found[window.name][shop]
                assert is_same(value, joined[window.name][shop].as_py()), (window.name, shop)
                if ordered or window.aggregation.function in ("count", "sum", "max", "count_distinct"):
                    assert is_same(value, wanted), (window.name, shop, value, wanted)


def _sold_at(sale: Sale) -> int:
    at: int = sale["sold_at"]
    return at


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return (one != one and other != other) or (one == other and math.copysign(1, one) == math.copysign(1, other))
    return type(one) is type(other) and one == other
