"""How objects of the API show themselves: short texts, and tables of HTML with every text escaped."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support.small_project import DEFINITIONS, carrier, carrier_profile, delay_now, flights

from featurestore import FeatureStore
from featurestore.client import OnlineResponse, OnlineRows, Status
from featurestore.definitions import FeatureView, Field, ParquetSource, PushSource
from featurestore.ledger.runs import RUN_HEADS, Published, RunResult, Runs, run_from
from featurestore.plan import Plan
from featurestore.tables import html_columns, html_table
from featurestore.types import Int64

EVIL = "<script>alert(1)</script>&'\""


class Page(HTMLParser):
    """The tags and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def run(**values: Any) -> RunResult:
    return RunResult("id", "view", 1, "interval", "done", 0, "host", 1, **values)


def store_of(settings: Mapping[str, Any]) -> FeatureStore:
    return FeatureStore({"project": "shop", **settings})


HARMLESS = {"table", "thead", "tbody", "tr", "th", "td", "p", "b"}
OBJECTS: dict[str, Any] = {
    "table": lambda: html_table([[EVIL]], [EVIL]),
    "columns": lambda: html_columns({EVIL: [EVIL] * 30}, 30),
    "plan": lambda: Plan("shop", 1, "", (), (EVIL,)),
    "runs": lambda: Runs([run(error=EVIL)]),
    "run": lambda: run(published=Published(wrong_type=1, wrong_type_keys=(EVIL,))),
    "answer": lambda: OnlineResponse({EVIL: [EVIL]}, OnlineRows(["x"], [[EVIL]], [[Status.PRESENT]])),
    "source": lambda: ParquetSource("s", EVIL, "at", description=EVIL),
    "view": lambda: FeatureView("v", entities=[carrier], source=flights, schema=[Field("x", Int64, description=EVIL)]),
    "SQL": lambda: FeatureView("v", entities=[carrier], source=flights, sql=f"SELECT * FROM flights -- {EVIL}"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_what_a_notebook_shows_is_escaped(name: str) -> None:
    shown = OBJECTS[name]()
    page = Page(shown if isinstance(shown, str) else shown._repr_html_())
    assert page.tags <= HARMLESS
    assert EVIL in page.text


@pytest.mark.parametrize("definition", DEFINITIONS, ids=lambda definition: definition.name)
def test_a_definition_shows_what_was_said_of_it(definition: Any) -> None:
    page = Page(definition._repr_html_())
    assert definition.kind.replace("_", " ") in page.text
    for field in getattr(definition, "fields", ()):
        assert field.name in page.text
        assert str(field.type) in page.text
    assert "code_hash" not in page.text + repr(definition)
    assert repr(definition).startswith(f"{definition.title}({definition.name!r}, ")
    assert len(repr(definition)) < 600


def test_a_definition_is_written_by_what_differs_from_its_defaults() -> None:
    assert repr(flights) == (
        "ParquetSource('flights', path='flights.parquet', timestamp_field='arrived_at', "
        "created_timestamp_field='recorded_at')"
    )
    assert repr(carrier) == "Entity('carrier', join_keys={'carrier': String})"
    assert repr(carrier_profile["flights"].with_name("x")) == (
        "FeatureSelection('x', view='carrier_profile', names=('flights',))"
    )
    assert repr(PushSource("p", flights)) == "PushSource('p', batch_source='flights')"
    assert "def delay_now" in Page(delay_now._repr_html_()).text
    assert "7 days" in Page(carrier_profile._repr_html_()).text
    assert "ttl=datetime.timedelta(days=7)" in repr(carrier_profile)
    assert carrier_profile.ttl == timedelta(days=7)


@pytest.mark.parametrize("shown", [*DEFINITIONS, Field("n", Int64)], ids=lambda shown: shown.name)
def test_a_definition_is_printed_as_it_is_written(shown: Any) -> None:
    assert str(shown) == repr(shown)
    taken = inspect.signature(type(shown)).parameters
    assert {name for name, _ in shown.__repr_args__() if name is not None} <= taken.keys()


@pytest.mark.parametrize("value", [None, 7, 7.5, "x", True, [7], {"a": 7}], ids=str)
@pytest.mark.parametrize("name", [each.name for each in fields(RunResult)])
def test_a_run_that_says_anything_can_be_shown(name: str, value: Any) -> None:
    """Older and newer releases write into one ledger."""
    document = {**asdict(run(duration_ms=1500, error="e", table_version=3)), name: value}
    shown = run_from(document)
    assert len(shown.cells()) == len(RUN_HEADS)
    assert repr(shown)
    assert Runs([shown])._repr_html_()
    if name in ("duration_ms", "table_version", "error"):
        kind = str if name == "error" else int
        assert getattr(shown, name) == (value if type(value) is kind else None)


def test_runs_are_shown_as_the_command_shows_them() -> None:
    page = Page(Runs([run(read=1_200, appended=1_000, waiting=2, duration_ms=1500), run(dry_run=True)])._repr_html_())
    for text in ("duplicates", "1,200", "1.5 s", "view: 2 rows are dated after now", "This was a dry run"):
        assert text in page.text
    assert repr(run(read=1_200, appended=5, duration_ms=1500)) == (
        "RunResult(view: done, 1,200 rows read, 5 appended, 0 online, 1.5 s)"
    )
    assert Runs([run()]) == [run()]


def test_a_store_shows_no_password_and_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    urls = {
        "registry": "sqlite:///registry.db",
        "online_store": "redis://me:secret@redis.example:6379/0",
    }
    with store_of(urls) as store:
        for text in (repr(store), store._repr_html_()):
            assert "shop" in text
            assert "secret" not in text
        assert "online storeredis" in Page(store._repr_html_()).text
    assert list(tmp_path.iterdir()) == []
