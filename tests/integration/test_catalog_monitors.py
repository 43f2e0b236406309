"""What the catalog says of monitors: their pages, and their health on the pages of what they watch."""

from __future__ import annotations

import html
import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from featurestore_registry.auth import Role, create_token
from featurestore_registry.documents import MONITOR
from featurestore_registry.findings import MonitorAlarm
from featurestore_registry.http.client import open_registry as open_http
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change
from featurestore_registry.sql import open_registry
from support.catalog_registry import (
    CHANGED_STATS,
    NOW,
    OTHER,
    PROJECT,
    customer_profile,
    fill,
    finding,
    put,
    ride_drift,
    stats_drift,
    watched,
)
from support.catalog_server import serving_catalog
from support.clock import ManualClock
from support.registry_server import serving_registry

from featurestore import Drift

VALUES = ("Montevideo", "Jensen-Shannon distance 0.46", "carries it", 'class="beside', "mean 3.7")
"""What only readers see of the fixture's finding."""
CLOCK = ManualClock(NOW)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    clock = ManualClock(0)
    with open_registry(f"sqlite:///{tmp_path}/registry.db", clock=clock) as registry:
        fill(registry, clock)
        yield registry


@pytest.fixture
def local(registry: Registry) -> Iterator[httpx.Client]:
    with serving_catalog(registry) as url, httpx.Client(base_url=f"{url}/p/{PROJECT}") as client:
        yield client


def text_of(page: httpx.Response) -> str:
    """Return what a page says, without its tags."""
    assert page.status_code == 200, page.url
    main = page.text.partition("<main")[2]
    return re.sub(r" ([.,:])", r"\1", " ".join(html.unescape(re.sub("<[^>]*>", " ", main)).split()))


def badges(page: httpx.Response) -> dict[str, str]:
    """Return the state beside each link to a monitor."""
    found = re.findall(r'<span class="badge \w*">([^<]*)</span></span> <a href="[^"]*/monitor/(\w+)">', page.text)
    return {name: state for state, name in found}


def put_again(registry: Registry, *definitions: Any) -> None:
    head = registry.definitions.chain(PROJECT).head
    registry.definitions.apply(PROJECT, head, put(PROJECT, *definitions), author="bob", message="", commit="")


@pytest.mark.uncounted
def test_the_list_begins_with_what_wants_attention(local: httpx.Client) -> None:
    page = local.get("/monitor")
    rows = re.findall("<tr><th scope=.row.>.*?</tr>", page.text, re.DOTALL)
    told = [" ".join(html.unescape(re.sub("<[^>]*>", " ", row)).split()) for row in rows]
    assert told == [
        "ride_drift alarm ride_eta_v2 1 1 hour ago 1 day to 2026-03-02 11:00:00 training set january mobility",
        "night_drift never ran nightly – never – the rows in the 28 days before the compared windows",
        "stats_drift ok driver_stats 0 2 hours ago 1 day to 2026-03-02 10:00:00 the rows in the 28 days before the "
        "compared windows mobility",
    ]
    assert re.search(r'/monitor" aria-current="page"><span>Monitors</span> <span class="count">3<', page.text)


@pytest.mark.uncounted
def test_where_nothing_is_watched_the_page_says_what_to_declare_and_run(local: httpx.Client) -> None:
    page = httpx.get(str(local.base_url).replace(PROJECT, OTHER) + "monitor")
    for told in ("from featurestore import Monitor", 'baseline="TRAINING_SET"', "fs apply fs monitor"):
        assert told in text_of(page)
    assert "fs monitor night_drift" in text_of(local.get("/monitor/night_drift"))


@pytest.mark.uncounted
def test_a_monitors_page_says_how_it_is_declared_and_what_is_too_far_first(local: httpx.Client) -> None:
    page = local.get("/monitor/ride_drift")
    told = text_of(page)
    for part in (
        "alarm too far in two windows: city (categories)",
        "city categories Jensen-Shannon distance 0.46 1 day ago 1 hour ago no",
        "Feature service ride_eta_v2 Beside training set january Window 1 day",
        "Drift of all features: distribution 0.2, mean 0.5 deviations, categories 0.2, nulls 5.0 %,",
        "Drift of city: distribution 0.2, mean 0.5 deviations, categories 0.3,",
        "without new values (judged from 500 rows of 200 entities on each side;",
        "Served values are what was online by then: at least 99.9 %",
        "4,200 rows from 2026-03-01 11:00:00 to 2026-03-02 11:00:00 UTC (1 day) beside training set 'january'",
        "1 alarm, 1 watch, 3 ok, 1 not judged.",
        "only 12 rows have a value",
        "segment 'south' of segment carries it: 92 % of the change is gone without it it began with run",
    ):
        assert part in told, part
    table = page.text.partition('aria-label="Features"')[2]
    names = re.findall(r'<th scope="row">(?:<a href="([^"]*)">)?(?:<code>)?([\w ]+)', table)
    view, at = f"/p/{PROJECT}/feature/feature_view", f"/p/{PROJECT}/feature_view"
    assert names == [
        (f"{view}/driver_stats/city", "city"),
        (f"{view}/driver_stats/last_rating", "last_rating"),
        (f"{view}/customer_profile/segment", "segment"),
        (f"/p/{PROJECT}/feature/on_demand_feature_view/ride_facts/rating_by_km", "rating_by_km"),
        (f"{at}/driver_stats", "records of driver_stats"),
        ("", "served as known"),
    ]
    assert "What moved most: Montevideo: 31 %, before 0 %; Berlin: 31 %, before 61 %; Lima" in page.text
    boxes = re.findall(r'<rect class="([\w-]+)"[^>]*><title>([^<]*)</title>', page.text)
    assert [state for state, _ in boxes] == ["ok", "ok", "not-judged", "ok", "watch", "alarm"]
    assert boxes[-1][1] == "2026-03-02 11:00:00 UTC: alarm, 1 open alarm"


@pytest.mark.uncounted
def test_pages_of_what_is_watched_say_how_it_is(local: httpx.Client) -> None:
    expected = {
        "": {"ride_drift": "alarm"},
        "/feature_service/ride_eta_v2": {"ride_drift": "alarm"},
        "/feature_service/ride_eta_v1": {},
        "/feature_view/driver_stats": {"ride_drift": "alarm", "stats_drift": "ok"},  # of its own features
        "/feature_view/customer_profile": {"ride_drift": "not judged"},
        "/feature_view/driver_recent": {"ride_drift": "not judged"},  # what it found names no feature of it
        "/feature_view/nightly": {"night_drift": "never ran"},
        "/feature_view/idle": {},
        "/feature/feature_view/driver_stats/city": {"ride_drift": "alarm", "stats_drift": "ok"},
        "/feature/feature_view/driver_stats/last_rating": {"ride_drift": "watch", "stats_drift": "ok"},
        "/feature/feature_view/nightly/night_trips": {"night_drift": "never ran"},
        "/feature/on_demand_feature_view/ride_facts/rating_by_km": {"ride_drift": "ok"},
        "/on_demand_feature_view/ride_facts": {"ride_drift": "ok"},
    }
    assert {path: badges(local.get(path or "/")) for path in expected} == expected
    feature = text_of(local.get("/feature/feature_view/driver_stats/city"))
    assert "Montevideo: 31.0 %, before 0.0 %. segment 'south' of segment carries it" in feature
    assert "mean 3.7, before 4.1" in text_of(local.get("/feature/feature_view/driver_stats/last_rating"))
    assert "too far in two windows: city (categories)" in text_of(local.get("/"))


def test_a_feature_that_no_check_is_for_names_no_monitor(registry: Registry, local: httpx.Client) -> None:
    put_again(registry, stats_drift.model_copy(update={"checks": (Drift("last_rating"),)}))
    assert badges(local.get("/feature/feature_view/driver_stats/city")) == {"ride_drift": "alarm"}
    assert "stats_drift" in badges(local.get("/feature/feature_view/driver_stats/last_rating"))


def test_a_monitor_is_found_drawn_and_compared(registry: Registry, local: httpx.Client) -> None:
    hits = re.findall(r'/monitor/(\w+)"', local.get("/search?q=ride_eta_v2&kind=monitor").text.partition("<main")[2])
    assert hits == ["ride_drift"]
    assert "kind monitors" in text_of(local.get("/search?kind=monitor"))
    drawn = local.get("/lineage?of=monitor:ride_drift").text
    assert (">Monitors</text>" in drawn, ">Others</text>" in drawn) == (True, False)
    before = replace_drift(psi=0.4)
    put_again(registry, before)
    put_again(registry, before.model_copy(update={"baseline": timedelta(days=7), "target": CHANGED_STATS}))
    told = text_of(local.get("/history/monitor/ride_drift"))
    for part in (
        "check drift psi 0.2 → 0.4",
        "check match rate removed",
        "baseline before added 7 days",
        "baseline training set removed january",
        "target feature service ride_eta_v2 → feature view driver_stats",
    ):
        assert part in told, told
    assert "The monitor was changed since" in text_of(local.get("/monitor/ride_drift"))


def replace_drift(**bounds: Any) -> Any:
    return ride_drift.model_copy(update={"checks": (Drift(**bounds), ride_drift.checks[1])})


def test_a_span_of_instants_is_told_as_instants(registry: Registry, local: httpx.Client) -> None:
    day, more = timedelta(days=1), {"description": "x"}
    start = datetime.fromisoformat(NOW)
    put_again(registry, stats_drift.model_copy(update={"baseline": (start - 40 * day, start - 9 * day), **more}))
    put_again(registry, stats_drift.model_copy(update={"baseline": (start - 40 * day, start - 8 * day), **more}))
    told = text_of(local.get("/history/monitor/stats_drift"))
    assert "baseline end 2026-02-21 12:00:00 UTC → 2026-02-22 12:00:00 UTC" in told
    assert "the rows from 2026-01-21 12:00:00 to 2026-02-22 12:00:00 UTC" in text_of(local.get("/monitor/stats_drift"))


def test_values_are_for_readers_and_states_for_all(registry: Registry) -> None:
    texts = {
        role: create_token(registry.ledger, PROJECT, role, expires_at_us=None, now_us=0)[0]
        for role in (Role.VIEWER, Role.READER)
    }
    paths = ("monitor/ride_drift", "monitor", "", "feature_view/driver_stats", "feature_service/ride_eta_v2",
             "feature/feature_view/driver_stats/city")  # fmt: skip
    with serving_registry(registry) as url:
        for role, text in texts.items():
            headers = {"authorization": f"Bearer {text}"}
            pages = [httpx.get(f"{url}/p/{PROJECT}/{path}".rstrip("/"), headers=headers) for path in paths]
            shown = [value for value in VALUES if any(value in page.text for page in pages)]
            assert shown == ([] if role is Role.VIEWER else list(VALUES)), role
            assert all(re.search(r'<span class="badge failed">alarm</span>', page.text) for page in pages), role
            assert ("want the role" in pages[0].text) == (role is Role.VIEWER)
            assert "distribution 0.2" in text_of(pages[0])
        # A registry elsewhere tells no viewer what monitors found, not even their states.
        with open_http(url, token=texts[Role.VIEWER]) as remote, serving_catalog(remote) as own:
            for path in paths:
                page = httpx.get(f"{own}/p/{PROJECT}/{path}".rstrip("/"))
                assert (page.status_code, "never ran" in page.text, ">alarm<" in page.text) == (200, False, False), path
            assert "want the role" in httpx.get(f"{own}/p/{PROJECT}/monitor/ride_drift").text


def test_what_is_tagged_personal_later_shows_no_earlier_value(registry: Registry, local: httpx.Client) -> None:
    paths = ("/monitor/ride_drift", "/feature_view/driver_stats", "/feature/feature_view/driver_stats/city")

    def shown() -> list[bool]:
        return [any(value in local.get(path).text for value in ("Montevideo", "Distance 0.46")) for path in paths]

    assert shown() == [True, True, True]
    fields = tuple(each.model_copy(update={"tags": {"personal": "yes"}}) for each in CHANGED_STATS.fields)
    put_again(registry, CHANGED_STATS.model_copy(update={"fields": fields}))
    assert shown() == [False, False, False]
    assert "hidden: personal" in local.get("/monitor/ride_drift").text


@pytest.mark.uncounted
def test_a_cause_that_may_say_a_value_of_what_is_personal_is_left_out(registry: Registry, local: httpx.Client) -> None:
    paths = ("/monitor/ride_drift", "/feature_view/driver_stats", "/feature/feature_view/driver_stats/city")

    def shown() -> list[tuple[bool, bool]]:
        pages = [local.get(path).text for path in paths]
        return [("Montevideo" in page, "of segment carries it" in page) for page in pages]

    assert shown() == [(True, True)] * 3
    fields = [each.model_copy(update={"tags": {"personal": "yes"}}) for each in customer_profile.fields]
    put_again(registry, customer_profile.model_copy(update={"fields": tuple(fields)}))
    assert shown() == [(True, False)] * 3
    assert "it began with run driver_stats-11" in local.get("/monitor/ride_drift").text  # "age" is in no word of it


def test_a_monitor_of_what_is_gone_says_so(registry: Registry, local: httpx.Client) -> None:
    head = registry.definitions.chain(PROJECT).head
    registry.definitions.apply(
        PROJECT, head, [Change("delete", "feature_service", "ride_eta_v2")], author="bob", message="", commit=""
    )
    for path in ("/monitor", "/monitor/ride_drift"):
        assert "ride_eta_v2 is gone" in text_of(local.get(path))


def test_2000_features_are_paged_fast_and_small(registry: Registry, local: httpx.Client) -> None:
    long = "x" * 300
    features = [
        watched(f"f{number:04}", state="alarm" if number % 40 == 7 else "ok", lines=watched("x").lines * 8,
                bars=tuple((f"{bar} to {bar + 1}", 0.04, 0.03) for bar in range(25)), not_judged=long)
        for number in range(2_000)
    ]  # fmt: skip
    alarms = tuple(MonitorAlarm(each.name, each.name, "psi", long, 0) for each in features if each.state == "alarm")
    found = finding("ride_drift", "feature_service:ride_eta_v2", CLOCK(), features=tuple(features), alarms=alarms)
    for _ in range(5):
        registry.ledger.append(PROJECT, MONITOR, "ride_drift", asdict(found))
    seen, times = list[str](), list[float]()
    local.get("/monitor/ride_drift")
    for number in range(1, 101):
        began_s = time.perf_counter()
        page = local.get(f"/monitor/ride_drift?page={number}")
        times.append(time.perf_counter() - began_s)
        assert len(page.content) < 100_000, number
        seen += re.findall(r'<th scope="row">(f\d+)', page.text.partition('aria-label="Features"')[2])
    first, others = [f"f{n:04}" for n in range(2_000) if n % 40 == 7], [f"f{n:04}" for n in range(2_000) if n % 40 != 7]
    assert seen == first + others
    assert sorted(times)[50] < 0.1, f"half of the pages take longer than {sorted(times)[50]:.3f} s"
    for path in ("/", "/monitor", "/feature_view/driver_stats", "/feature_service/ride_eta_v2"):
        assert len(local.get(path).content) < 100_000, path
    first_page = text_of(local.get("/monitor/ride_drift"))
    assert first_page.count("alarm f") == 12, "a drawing is for each that is too far, on the first page not for all"
    assert "a pair for each bin, value or status. Not drawn: f0487, f0527, f0567, f0607," in first_page
    assert "f0007 (distribution), f0047 (distribution), f0087 (distribution) and 47 more" in text_of(local.get("/"))


@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"state": "panic"},
        {"features": "x"},
        {"features": [7]},
        {"features": [{"name": None, "state": "ok"}]},
        {"made_us": "yesterday"},
        {"made_us": 10**400},
        {"rows": 10**4000},
        {"alarms": {"a": 1}},
        {"alarms": [{"id": 1}]},
    ],
    ids=lambda odd: ",".join(odd) or "empty",
)
def test_a_finding_of_another_version_stops_no_page(registry: Registry, local: httpx.Client, odd: Any) -> None:
    good = asdict(finding("ride_drift", "feature_service:ride_eta_v2", CLOCK()))
    registry.ledger.append(PROJECT, MONITOR, "ride_drift", {**good, **odd} if odd else {})
    for path in ("/", "/monitor", "/feature_view/driver_stats", "/feature_service/ride_eta_v2",
                 "/feature/feature_view/driver_stats/city", "/monitor/ride_drift"):  # fmt: skip
        assert "another version" in text_of(local.get(path)) or path not in ("/monitor/ride_drift",), path
    assert "unreadable" in text_of(local.get("/monitor"))
    registry.ledger.append(PROJECT, MONITOR, "ride_drift", {**good, "of_a_later_version": 7})
    assert "Montevideo" in local.get("/monitor/ride_drift").text


def test_figures_that_no_drawing_holds_are_left_out(registry: Registry, local: httpx.Client) -> None:
    good = finding("ride_drift", "feature_service:ride_eta_v2", CLOCK())
    for share in (-0.5, 1e300, 10**30):
        bars = (("a", share, 0.5), ("b", 0.5, 0.5))
        features = (watched("city", state="alarm", bars=bars, rows=-(2**60), entities=2**60),)
        odd = replace(good, features=features, start_us=-(2**62), until_us=2**62, match_rate=-1e300)
        registry.ledger.append(PROJECT, MONITOR, "ride_drift", asdict(odd))
        page = local.get("/monitor/ride_drift")
        numbers = re.findall(r"[-\d.e+]+", " ".join(re.findall(r'<path class="(?:was|now)" d="([^"]*)"', page.text)))
        assert page.status_code == 200
        assert all(len(number) < 8 for number in numbers), share


def test_the_line_of_states_follows_every_finding(registry: Registry, local: httpx.Client) -> None:
    dice = random.Random(7)
    states = ["ok", "ok", "not judged", "ok", "watch", "alarm"]
    for step in range(30):
        for _ in range(dice.choice((1, 1, 1, 2, 3, 40))):
            states.append(dice.choice(("ok", "watch", "alarm", "not judged", "panic")))
            found = finding("ride_drift", "feature_service:ride_eta_v2", CLOCK() + step)
            registry.ledger.append(PROJECT, MONITOR, "ride_drift", {**asdict(found), "state": states[-1]})
        page = local.get("/monitor/ride_drift").text
        shown = [name.replace("-", " ") for name in re.findall(r'<rect class="([\w-]+)"', page)]
        assert shown == [state.replace("panic", "unreadable") for state in states[-30:]]


def test_long_texts_of_findings_make_no_long_page(registry: Registry, local: httpx.Client) -> None:
    good, text = finding("ride_drift", "feature_service:ride_eta_v2", CLOCK()), "long " * 1_000
    (city,) = (each for each in good.features if each.name == "city")
    line, cause = replace(city.lines[0], told=text, name=text), replace(city.causes[0], told=text)
    each = replace(city, lines=(line,) * 3, causes=(cause,) * 50, not_judged=text, bars=((text, 0.5, 0.4),) * 9)
    alarms = tuple(MonitorAlarm(text, text, text, text, 0) for _ in range(500))
    features = (each, *(replace(each, name=f"{number} {text}") for number in range(300)))
    found = replace(good, features=features, alarms=alarms, baseline=text, models=(text,) * 50)
    registry.ledger.append(PROJECT, MONITOR, "ride_drift", asdict(found))
    for path in ("/", "/monitor", "/monitor/ride_drift", "/monitor/ride_drift?page=2", "/feature_view/driver_stats",
                 "/feature/feature_view/driver_stats/city", "/feature_service/ride_eta_v2"):  # fmt: skip
        page = local.get(path)
        assert (page.status_code, len(page.content) < 100_000) == (200, True), (path, len(page.content))
