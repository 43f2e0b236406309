"""Feature repos and stores in folders with odd names: everything works there, or the first command says why not."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from support.command_line import CommandLine
from support.materialized import Sale, day, log_rows, sales_view, write_sales
from support.projects import make_workspace
from support.sources import table_of, write

from featurestore import FeatureStore
from featurestore.backends import check_offline_folder
from featurestore.cli.main import main
from featurestore.definitions import ParquetSource
from featurestore.engine.duck.engine import open_engine
from featurestore.errors import InputError, SettingsError, SourceFileError
from featurestore.materialization import materialize_incremental, succeeded
from featurestore.offline.local.store import DeltaStore
from featurestore.testing.offline_store import TABLE, append, row
from featurestore.training.outputs import check_output

pytestmark = pytest.mark.uncounted

GOOD = ['~it\'s 100% "odd" #1 ? * {a,b} ü☃é', "-x=y;$&!@()+,`<>: %zz %4", "key=value"]
BAD = [
    "%20",
    "my%2Fproject",
    "%41",
    "%25",
    "a\\b",
    "[a]",
    "a]",
    "a^b",
    "a|b",
    "a\nb",
    "a\tb",
    "\x7f",
    b"\xff".decode(errors="surrogateescape"),
]


@pytest.mark.parametrize("name", GOOD[:2])
def test_every_command_works_in_an_odd_folder(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / name / "repo"
    with pytest.raises(SystemExit) as caught:
        main(["init", "--name", "tour", f"./{name}/repo"])
    assert caught.value.code == 0, capsys.readouterr()
    run = CommandLine(root, capsys)
    features = root / "features.py"
    text = features.read_text().replace(
        "source=driver_stats_source,", 'source=PushSource("pushed", driver_stats_source),', 1
    )
    features.write_text(text.replace("    Entity,", "    Entity, PushSource,"))
    settings = root / "feature_store.yaml"
    settings.write_text(settings.read_text() + "\nengine: {temp_directory: spill}\n")
    run("plan")
    run("apply", "--yes")
    run("materialize")
    service, trips, out = "trip_model_v1", str(root / "data/trips.parquet"), str(root / "training.parquet")
    run("training-set", "--entities", trips, "--service", service, "--out", out)
    assert pq.ParquetFile(out).metadata.num_rows == 500
    before = run.json("online", "--service", service, "--entity", "driver_id=1001", "--entity", "trip_km=12.5")
    now = pd.Timestamp.now("UTC").floor("us")
    with FeatureStore(root) as store:
        store.push("pushed", {"driver_id": [1001], "hour": [now], "created": [now], "trips": [77], "rating": [5.0]})
    after = run.json("online", "--service", service, "--entity", "driver_id=1001", "--entity", "trip_km=12.5")
    assert before != after
    assert "77" in str(after)
    run("materialize")
    run("optimize")
    run("verify")
    run("gc")
    run("doctor")
    run("status")


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_delta_would_misread_is_refused_at_the_first_command(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(["init", "--name", "tour", f"./{name}"])
    assert caught.value.code == 1
    assert "Delta tables cannot be in" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    root = tmp_path / name
    root.mkdir()
    (root / "feature_store.yaml").write_text("project: shop\n")
    (root / "features.py").write_text("")
    for command in ("plan", "apply", "status"):
        CommandLine(root, capsys)(command, expect=1)
    with pytest.raises(SettingsError, match="misreads") as error:
        FeatureStore(root)
    assert error.value.message.isprintable()
    assert {path.name for path in root.iterdir()} == {"feature_store.yaml", "features.py"}


def test_a_repo_in_such_a_folder_works_with_its_offline_store_elsewhere(tmp_path: Path) -> None:
    root = tmp_path / "my%20[project]*|k=v"
    write_sales(root / "sales" / "1.parquet", [Sale("a", day(1), day(1), 7)])
    (root / "feature_store.yaml").write_text("project: shop\noffline_store: ../offline\n")
    with FeatureStore(root) as store:
        store.apply([sales_view(path="s*/*.parquet")])
        succeeded(store.materialize_incremental())
        assert store.get_online_features("shop_sales:amount", {"shop": ["a"]}).to_dict()["amount"] == [7]
        frame = "SELECT shop, sold_at AS event_timestamp FROM sales"
        for direct in (False, True):
            made = store.get_historical_features(frame, "shop_sales:amount", direct=direct).to_arrow()
            assert made["amount"].to_pylist() == [7]
        with pytest.raises(InputError, match="source 'sales'"):
            check_output(store.workspace, root / "sales" / "2.parquet")


def test_the_table_of_a_neighbour_is_never_read(tmp_path: Path) -> None:
    neighbour = make_workspace(tmp_path / "my project", [sales_view()], now_us=day(10))
    write_sales(neighbour.root / "sales.parquet", [Sale("a", day(1), day(1), 7)])
    succeeded(materialize_incremental(neighbour))
    assert len(log_rows(neighbour)) == 1
    (tmp_path / "my%20project").mkdir()
    with pytest.raises(SettingsError, match="misreads '%20'"):
        make_workspace(tmp_path / "my%20project", [sales_view()], now_us=day(10))
    neighbour.close()


def test_delta_writes_where_we_let_it(tmp_path: Path) -> None:
    """All characters of ASCII that print and are not refused, and some more: written where they say, and read there."""
    characters = [chr(code) for code in range(32, 127) if chr(code) not in "/[]^|\\"]
    for name in ("".join([*characters, "é☃\x80\u200b"]), "".join(reversed(characters)), "%4", "%g1", " ", "%", "~"):
        folder = tmp_path / name
        check_offline_folder(folder)
        version = append(DeltaStore(folder), [row(1)])
        assert [Path(file.path).is_relative_to(folder) for file in version.files] == [True]
        assert DeltaStore(folder).current(TABLE) == version


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (b"b\xff.parquet", "is not UTF-8"),
        (b"b\\*.parquet", "a backslash together with"),
        (b"\\[x].parquet", "a backslash together with"),
    ],
)
def test_a_file_that_cannot_be_named_is_told(tmp_path: Path, name: bytes, fault: str) -> None:
    write(tmp_path / "data" / "a.parquet", table_of())
    os.link(tmp_path / "data" / "a.parquet", os.fsencode(tmp_path / "data") + b"/" + name)
    with pytest.raises(SourceFileError, match=fault) as caught:
        open_engine(tmp_path).sources.files(ParquetSource("flights", "data", "at"))
    assert caught.value.message.isascii()
