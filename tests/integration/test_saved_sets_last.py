"""A saved training set stays what it was, whatever is materialized, rebuilt, compacted, cleaned or redefined after."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import Sale, day, online_rows, sales_view, write_sales
from support.projects import make_workspace

from featurestore import Field
from featurestore.errors import ChangesNotAllowedError, TableVersionError
from featurestore.maintenance.gc import collect_garbage
from featurestore.maintenance.optimize import optimize
from featurestore.materialization import materialize, materialize_incremental, republish, succeeded
from featurestore.plan import apply_plan, check_allowed, make_plan
from featurestore.plan.changes import explain
from featurestore.project.loader import collect
from featurestore.training import get_historical_features, get_training_set
from featurestore.types import Int64, String
from featurestore.workspace import Workspace

pytestmark = pytest.mark.uncounted

NOW = day(20)
SALES = [Sale(f"shop {n % 7}", day(n / 3), day(n / 3 + n % 3), n, f"note {n}") for n in range(40)]
LATE = [Sale("shop 1", day(11.9), day(19.9), -1, "late"), Sale("shop 2", day(2 / 3), day(2 / 3 + 2), -2, "corrected")]


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    write_sales(tmp_path / "sales.parquet", SALES)
    made = make_workspace(tmp_path, [sales_view(ttl=timedelta(days=6))], now_us=NOW)
    succeeded(materialize_incremental(made))
    yield made
    made.close()


def frame() -> pd.DataFrame:
    times = [day(number / 2) for number in range(38)]
    return pd.DataFrame(
        {
            "shop": [f"shop {number % 9}" for number in range(38)],
            "event_timestamp": pd.to_datetime(times, unit="us", utc=True),
            "label": range(38),
        }
    )


def apply(workspace: Workspace, *definitions: Any, **flags: bool) -> str:
    plan = make_plan(workspace, collect(definitions), partial=bool(definitions))
    check_allowed(plan, **{"allow_breaking": True, "allow_destroy": False, **flags})
    apply_plan(workspace, plan)
    return "\n".join(line.text for line in explain(plan))


def corrected(workspace: Workspace) -> None:
    write_sales(workspace.root / "sales.parquet", [*SALES, *LATE])
    succeeded(materialize(workspace, day(0), NOW))


def rebuilt(workspace: Workspace) -> None:
    write_sales(workspace.root / "sales.parquet", SALES[::2])
    (run,) = succeeded(materialize(workspace, day(0), NOW, rebuild=True, confirm=lambda *_: True))
    assert run.withdrawn >= 20


def cleaned(workspace: Workspace) -> None:
    corrected(workspace)
    (done,) = optimize(workspace)
    assert (done.files_before, done.files_after) == (2, 1)
    rebuilt(workspace)
    optimize(workspace)
    workspace.clock.advance(timedelta(days=60))
    collect_garbage(workspace)
    optimize(workspace)


def another_ttl(workspace: Workspace) -> None:
    apply(workspace, sales_view(ttl=timedelta(days=1)))


def another_type(workspace: Workspace) -> None:
    changed = sales_view().replaced(
        fields=(Field("amount", String), Field("note", String)),
        sql="SELECT * REPLACE ('' || amount AS amount) FROM sales",
    )
    assert "set aside; generation 2 starts empty" in apply(workspace, changed)
    succeeded(materialize_incremental(workspace))
    assert [kept.what for kept in collect_garbage(workspace).kept] == ["offline table shop/shop_sales/1"]


def a_new_feature(workspace: Workspace) -> None:
    table = pq.read_table(workspace.root / "sales.parquet")
    pq.write_table(table.append_column("more", pa.array(range(len(table)))), workspace.root / "sales.parquet")
    view = sales_view(ttl=timedelta(days=6))
    apply(workspace, view.replaced(fields=(Field("more", Int64), *view.features)))
    succeeded(materialize(workspace, day(0), NOW, rebuild=True, confirm=lambda *_: True))


@pytest.mark.parametrize(
    ("change", "as_of"),
    [
        (corrected, "event"),
        (rebuilt, "available"),
        (cleaned, "available"),
        (another_ttl, "event"),
        (another_type, "available"),
        (a_new_feature, "event"),
    ],
)
def test_it_is_built_again_identical_after(
    workspace: Workspace, change: Callable[[Workspace], None], as_of: Any
) -> None:
    made = get_historical_features(workspace, frame(), "shop_sales:amount", as_of=as_of).save("first")
    before = made.to_pandas()
    change(workspace)
    again = get_training_set(workspace, "first")
    pd.testing.assert_frame_equal(again.to_pandas(), before)
    assert [view.from_future for view in again.certificate.views] == [0]
    if change in (corrected, rebuilt, cleaned, another_ttl):
        now = get_historical_features(workspace, frame(), "shop_sales:amount", as_of=as_of).to_pandas()
        assert not now.equals(before)  # otherwise the change would prove nothing


def test_compacting_changes_no_answer(workspace: Workspace) -> None:
    corrected(workspace)
    before = [
        get_historical_features(workspace, frame(), "shop_sales:amount", as_of=as_of).to_pandas()
        for as_of in ("available", "event")
    ]
    online = online_rows(workspace)
    optimize(workspace)
    for as_of, wanted in zip(("available", "event"), before, strict=True):
        found = get_historical_features(workspace, frame(), "shop_sales:amount", as_of=as_of).to_pandas()
        pd.testing.assert_frame_equal(found, wanted)
    (run,) = succeeded(materialize_incremental(workspace))
    assert (run.appended, run.published.written) == (0, 0)
    workspace.online.delete(b"fs:shop:")
    succeeded(republish(workspace, authoritative=True))
    assert online_rows(workspace) == online
    (run,) = succeeded(materialize(workspace, day(0), NOW))
    assert (run.read, run.unchanged, run.appended) == (len(SALES) + 2, len(SALES) + 1, 0)


def test_deleting_its_view_says_which_sets_go_first(workspace: Workspace) -> None:
    get_historical_features(workspace, frame(), "shop_sales:amount", as_of="event").save("first")
    plan = make_plan(workspace, [], partial=False)
    assert "saved training sets first could not be built again" in "\n".join(line.text for line in explain(plan))
    with pytest.raises(ChangesNotAllowedError):
        check_allowed(plan, allow_breaking=True, allow_destroy=False)
    assert len(get_training_set(workspace, "first").to_pandas()) == 38
    apply_plan(workspace, plan)
    with pytest.raises(TableVersionError, match="shop/shop_sales/1"):
        get_training_set(workspace, "first").to_pandas()
