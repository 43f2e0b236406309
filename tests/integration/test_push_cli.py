"""fs push: the page it prints, its JSON, its exit codes, and mistakes told without a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.materialized import INSTANT, Sale, day, write_sales

from featurestore.cli.main import main
from featurestore.store import FeatureStore

FEATURES = """
from featurestore import Entity, FeatureView, Field, ParquetSource, PushSource
from featurestore.types import Int64, String

shop = Entity("shop", {"shop": String})
sales = PushSource("sales_push", ParquetSource("sales", "sales.parquet", "sold_at", "known_at"))
shop_sales = FeatureView("shop_sales", entities=[shop], source=sales, schema=[Field("amount", Int64)])
notes = FeatureView("notes", entities=[shop], source=sales, schema=[Field("note", String)], online=False)
"""


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "feature_store.yaml").write_text("project: shop\n")
    (tmp_path / "features.py").write_text(FEATURES)
    write_sales(tmp_path / "sales.parquet", [Sale("a", day(1), day(1), 1)])
    sales = [Sale("a", day(2), day(2), 2), Sale("a", day(1), day(3), 3), Sale("b", day(2), None, 4, "text")]
    write_sales(tmp_path / "new.parquet", sales)
    with FeatureStore(tmp_path) as store:
        store.apply()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fs(capsys: pytest.CaptureFixture[str], repo: Path) -> Any:
    def run(*arguments: str, expect: int = 0) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["push", *arguments])
        out, err = capsys.readouterr()
        assert caught.value.code == expect, out + err
        assert "Traceback" not in out + err
        return out + err

    return run


def test_the_page(fs: Any) -> None:
    page = [line.rstrip() for line in fs("sales_push", "new.parquet").splitlines()]
    assert page == [
        "view        committed  version  online  stale  expired  wrong type",
        "notes               3        0",
        "shop_sales          3        0       2      1        0           0",
    ]
    page = fs("sales_push", "new.parquet", "--to", "online").splitlines()
    assert page[1].split() == ["shop_sales", "2", "1", "0", "0"]
    assert "in no training set" in page[2]


def test_json(fs: Any) -> None:
    document = json.loads(fs("sales_push", "new.parquet", "--json"))
    assert document == {
        "source": "sales_push",
        "rows": 3,
        "to": "both",
        "views": {
            "notes": {"online": None, "offline": {"rows": 3, "version": 0}},
            "shop_sales": {
                "online": {"written": 2, "stale": 1, "expired": 0, "wrong_type": 0},
                "offline": {"rows": 3, "version": 0},
            },
        },
        "note": None,
    }


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["sales_push"], 2, "Missing argument 'FILE'"),
        (["sales_push", "new.parquet", "--to", "there"], 2, "'there' is not one of"),
        (["sale_push", "new.parquet"], 1, "Did you mean 'sales_push'?"),
        (["sales_push", "nothing.parquet"], 1, "there is no such file"),
        (["sales_push", "features.py"], 1, "features.py cannot be read"),
        (["sales_push", "other.parquet"], 1, "no column 'note'. Did you mean 'notes'?"),
        (["sales_push", "later.parquet"], 1, "row 0: 9999-12-31T23:59:59.999999Z lies in the future"),
    ],
)
def test_mistakes(fs: Any, repo: Path, arguments: list[str], code: int, words: str) -> None:
    table = pq.read_table(repo / "new.parquet")
    pq.write_table(table.rename_columns(["shop", "sold_at", "known_at", "amount", "notes"]), repo / "other.parquet")
    late = pa.array([253402300799999999] * 3).cast(INSTANT)
    pq.write_table(table.set_column(1, "sold_at", late), repo / "later.parquet")
    text = " ".join(fs(*arguments, expect=code).split())
    assert words in text.replace(" What to do:", "")


def test_the_store_pushes_a_data_frame(repo: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"shop": ["a"], "sold_at": [pd.Timestamp("2024-01-02")], "amount": [5], "note": [None]})
    with FeatureStore(repo) as store:
        result = store.push("sales_push", frame)
        assert result.views["shop_sales"].online.written == 1
        assert store.get_online_features(["shop_sales:amount"], {"shop": ["a"]}).to_dict()["amount"] == [5]
        assert str(result).startswith("PushResult(source='sales_push', rows=1, to='both', views={'notes': PushedView(")
