"""The catalog's pages over HTTP: what they say, to whom, and that no text of theirs is obeyed. No browser here."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from featurestore_registry.auth import Role, Token
from featurestore_registry.catalog import frame, history
from featurestore_registry.catalog.app import Catalog
from featurestore_registry.catalog.pages import listing
from featurestore_registry.errors import RegistryUnavailableError
from featurestore_registry.http.client import open_registry as open_http
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change
from featurestore_registry.sql import open_registry
from support.catalog_crawl import Parsed, Served, crawl, serving_all_roles
from support.catalog_registry import (
    CHANGED_STATS,
    HOSTILE,
    HTML,
    OTHER,
    PROJECT,
    driver_recent,
    fill,
    filled,
    put,
    statistics,
)
from support.catalog_server import serving_catalog
from support.clock import ManualClock
from support.registry_server import serving_registry

from featurestore import FeatureView

HTMX = "d6fdc75f204e6bdefa99b69bf1e6d4ac69b8a364f77929f45c13476b4000f717"
"""SHA-256 of dist/htmx.min.js in the package htmx.org 2.0.11 of npm."""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with filled(tmp_path_factory.mktemp("catalog")) as registry:
        yield registry


@pytest.fixture(scope="module")
def local(registry: Registry) -> Iterator[httpx.Client]:
    with serving_catalog(registry) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def served(registry: Registry) -> Iterator[Served]:
    with serving_all_roles(registry, (PROJECT, OTHER)) as served:
        yield served


def test_every_page_that_a_link_leads_to_is_there_and_holds_the_rules(local: httpx.Client) -> None:
    pages = crawl(local, f"/p/{PROJECT}")
    assert {path: page.status_code for path, page in pages.items() if page.status_code != 200} == {}
    assert len(pages) >= 10
    for path, page in pages.items():
        parsed = Parsed(page.text)
        names = [name for _, given in parsed.tags for name in given]
        assert not [name for name in names if name == "style" or name.startswith("on")], path
        assert all(given.get("src") for tag, given in parsed.tags if tag == "script"), path
        assert not [tag for tag, _ in parsed.tags if tag in ("style", "iframe", "object", "base")], path
        assert [given.get("method", "get") for tag, given in parsed.tags if tag == "form"] == ["get"], path
        assert len(page.content) < 100_000, path
        policy = page.headers["content-security-policy"]
        assert policy == frame.HEADERS["content-security-policy"]
        assert "unsafe" not in policy
        assert [tag for tag, _ in parsed.tags].count("h1") == 1, path
        ids = [given["id"] for _, given in parsed.tags if "id" in given]
        assert len(ids) == len(set(ids)), path


def test_an_apply_that_is_not_kept_leads_to_the_page_that_compares_it(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MOST_REVISIONS", 1)
    with serving_catalog(registry) as url:
        answer = httpx.get(f"{url}/p/{PROJECT}/revision/2")
        assert (answer.status_code, "older than the applies that are kept" in answer.text) == (404, True)
        assert f"/p/{PROJECT}/compare/1/2" in Parsed(answer.text).links()
        assert httpx.get(f"{url}/p/{PROJECT}/compare/1/2").status_code == 200


def test_no_text_of_a_registry_is_obeyed(local: httpx.Client) -> None:
    pages = crawl(local, f"/p/{HOSTILE}")
    assert {path: page.status_code for path, page in pages.items() if page.status_code != 200} == {}
    assert len(pages) >= 10
    for path, page in pages.items():
        parsed = Parsed(page.text)
        assert [given for tag, given in parsed.tags if tag == "img" and given.get("src") == "x"] == [], path
        assert [given for tag, given in parsed.tags if tag == "script" and not given.get("src")] == [], path
        assert "\u202e" not in page.text
        assert "47569433" not in page.text, path  # the template in it
    assert "&lt;img src=x onerror=alert(1)&gt;" in pages[f"/p/{HOSTILE}"].text


def test_the_files_of_pages_are_the_packages_own(local: httpx.Client) -> None:
    tags = Parsed(local.get(f"/p/{PROJECT}").text).tags
    files = {str(given.get("src") or given.get("href")) for tag, given in tags if tag in ("script", "link", "img")}
    assert {file.partition("?")[0].rpartition("/")[2] for file in files} == {
        "htmx.min.js",
        "catalog.js",
        "catalog.css",
        "icon.svg",
    }
    for file in files:
        answer = local.get(file)
        assert (answer.status_code, "immutable" in answer.headers["cache-control"]) == (200, True)
    content = local.get("/static/htmx.min.js").content
    assert hashlib.sha256(content).hexdigest() == HTMX
    licence = Path(frame.__file__).parent / "static" / "htmx.LICENSE"
    assert "Zero-Clause BSD" in licence.read_text()
    for name in ("../app.py", "%2e%2e%2fapp.py", "nothing.js", "htmx.LICENSE", ""):
        assert local.get(f"/static/{name}").status_code == 404


def test_another_host_is_not_answered(local: httpx.Client, registry: Registry) -> None:
    """A page elsewhere whose name is made to lead to this machine could read everything."""
    for host in ("evil.example", "evil.example:80", f"evil.example:{local.base_url.port}", "127.0.0.1", ""):
        answer = local.get(f"/p/{PROJECT}", headers={"host": host})
        assert (answer.status_code, PROJECT in answer.text) == (421, False), host
    assert local.post(f"/p/{PROJECT}").status_code == 405
    scope = {
        "method": "GET",
        "headers": [(b"host", b"here"), (b"host", b"evil.example")],
        "path": "/",
        "query_string": b"",
    }
    assert Catalog(registry, is_local=True, hosts=["here"])._response(scope).status_code == 421


def test_an_unknown_name_is_told_apart_and_the_nearest_named(local: httpx.Client) -> None:
    for path, told in {
        f"/p/{PROJECT}/feature_view/driver_stat": "Did you mean &#39;driver_stats&#39;?",
        "/p/ride": "Did you mean &#39;rides&#39;?",
        f"/p/{PROJECT}/feature_wiew": "Did you mean &#39;feature_view&#39;?",
        "/p/ride%00": "There is no project",
        f"/p/{PROJECT}/a/b/c/d": "All projects",
        "/nowhere": "All projects",
    }.items():
        answer = local.get(path)
        assert answer.status_code == 404, path
        assert told in answer.text or path.endswith("/d"), path


def test_without_a_token_nothing_is_shown_but_how_to_log_in(served: Served) -> None:
    for path in ("/", f"/p/{PROJECT}", f"/p/{PROJECT}/feature_view/driver_stats", "/p/nothing", "/p/x/y/z/a"):
        answer = httpx.get(f"{served.url}{path}")
        assert answer.status_code == (200 if path == "/" else 401)
        assert "fs catalog" in answer.text
        assert not [name for name in (PROJECT, "driver") if name in answer.text.replace(path, "")]
    assert httpx.get(f"{served.url}/static/catalog.css").status_code == 200


def test_a_project_that_a_token_does_not_see_does_not_exist(served: Served) -> None:
    assert served.ask(Role.VIEWER, OTHER, "/").headers["location"] == f"/p/{OTHER}"
    hidden = served.ask(Role.VIEWER, OTHER, f"/p/{PROJECT}/feature_view/driver_stats")
    nothing = served.ask(Role.VIEWER, OTHER, "/p/nothings/feature_view/driver_stats")
    assert (hidden.status_code, nothing.status_code) == (404, 404)
    assert hidden.text.replace(PROJECT, "nothings") == nothing.text
    assert served.ask(Role.VIEWER, OTHER, f"/p/{OTHER}").status_code == 200
    seen = Parsed(served.ask(Role.VIEWER, None, "/").text).links()
    assert {f"/p/{name}" for name in (PROJECT, OTHER, HOSTILE)} <= seen


def test_a_page_says_what_there_is(local: httpx.Client) -> None:
    home = local.get(f"/p/{PROJECT}").text
    for told in (
        "driver_stats</a> <span class=\"says\">its newest event is 3 days old; values expire after 1 day",
        "The column &#39;segment&#39; of data/trips.parquet is gone.",
        "nothing was materialized yet",
        "a run began 9 hours ago and never ended: its process was killed",
        "ride_eta_v2",
        "<s>legacy_scores</s>",
    ):  # fmt: skip
        assert told in home, told
    assert "<code>rating</code>" in local.get(f"/p/{PROJECT}/source/trips").text  # its name in the SQL of driver_stats
    assert "a run is under way" in local.get(f"/p/{PROJECT}/feature_view/driver_recent").text
    for numbers, told in (
        ("1/2", (True, False)),
        ("2/3", (False, True)),
        ("1/3", (True, True)),
        ("2/2", (False, False)),
    ):
        page = local.get(f"/p/{PROJECT}/compare/{numbers}").text  # a feature of revision 2, a view that 3 deletes
        assert ("trips_total" in page, "legacy_scores" in page) == told
    for name, source, how in (("city", "city", "copied"), ("last_rating", "rating", None)):  # the mean of ratings
        page = local.get(f"/p/{PROJECT}/feature/feature_view/driver_stats/{name}").text
        (found,) = re.findall(rf"<code>trips.{source}</code></a>(?: <span class=.muted.>([^<]*)</span>)?</li>", page)
        assert (found or None) == how
    service = html.unescape(local.get(f"/p/{PROJECT}/feature_service/ride_eta_v2").text)
    for told in (
        '[{"driver_id": 1, "rider_id": 1, "distance": 1.5}]',
        '"entities": {"driver_id": [1], "rider_id": [1]}, "request_data": {"distance": [1.5]}',
        "--service ride_eta_v2 \\\n  --entity driver_id=1 \\\n  --entity rider_id=1 \\\n  --entity distance=1.5",
    ):
        assert told in service, told
    assert "fs training-set --features &#39;idle:*&#39; --en" in local.get(f"/p/{PROJECT}/feature_view/idle").text
    view = local.get(f"/p/{PROJECT}/feature_view/driver_stats").text
    for told in (
        "[&#34;driver_stats:*&#34;],\n    [{&#34;driver_id&#34;: 1}],",
        "fs online --features &#39;driver_stats:*&#39; --entity driver_id=1",
        "avg(rating) AS last_rating",
        "stars of the last trip",
        "ride_eta_v2",
        "trips",
        "10,840",
    ):
        assert told in view, told


def test_a_features_page_counts_all_runs_and_names_the_columns_it_comes_from(local: httpx.Client) -> None:
    page = local.get(f"/p/{PROJECT}/feature/feature_view/driver_stats/last_rating").text
    assert "Of all counted runs: 9,962 rows in 11 runs" in page
    assert "<code>trips.rating</code></a>" in page
    assert "trips.*" not in page
    assert f'href="/p/{PROJECT}/lineage"' in page
    summed = [name for name in ("driver_stats", "customer_profile") if "9,962 rows in 11" in local.get(
        f"/p/{PROJECT}/feature_view/{name}").text]  # fmt: skip
    assert summed == ["driver_stats"]


def test_a_page_follows_what_is_applied_and_run(tmp_path: Path) -> None:
    clock = ManualClock(0)
    with open_registry(f"sqlite:///{tmp_path}/registry.db", clock=clock) as registry, serving_catalog(registry) as url:
        assert "fs apply" in httpx.get(url).text
        fill(registry, clock)
        view: Any = f"{url}/p/{PROJECT}/feature_view/driver_stats"
        assert httpx.get(view).status_code == 200
        before = httpx.get(f"{url}/p/{PROJECT}").text
        head = registry.definitions.chain(PROJECT).head
        registry.definitions.apply(
            PROJECT, head, [Change("delete", "feature_view", "idle")], author="bob", message="", commit=""
        )
        assert httpx.get(f"{url}/p/{PROJECT}/feature_view/idle").status_code == 404
        after = httpx.get(f"{url}/p/{PROJECT}").text
        assert ("<s>idle</s>" in before, "<s>idle</s>" in after) == (False, True)
        assert HTML not in after
        link = f'href="/p/{PROJECT}/feature_view/idle"'  # nothing is materialized of it
        assert (link in before, link in after) == (True, False)
        listed = [httpx.get(f"{url}/p/{PROJECT}/features").text]
        counted = asdict(statistics("driver_stats-13", 0, 1_000, city_nulls=1_000))
        registry.ledger.append(PROJECT, "statistics", "driver_stats.1", counted)
        listed.append(httpx.get(f"{url}/p/{PROJECT}/features").text)
        assert ["6.2\u00a0%" in listed[0], "14.8\u00a0%" in listed[1]] == [True, True]  # 620 of 9,962, 1,620 of 10,962
        # A killed run writes nothing more: only time tells that its lease has expired.
        ended = "its process was killed"
        assert after.count(ended) == 1
        clock.advance(timedelta(seconds=41))
        assert httpx.get(f"{url}/p/{PROJECT}").text.count(ended) == 2


def test_what_is_tagged_personal_later_shows_no_earlier_value(tmp_path: Path) -> None:
    clock = ManualClock(0)
    with open_registry(f"sqlite:///{tmp_path}/registry.db", clock=clock) as registry, serving_catalog(registry) as url:
        fill(registry, clock)
        features = (
            "feature/feature_view/driver_stats/city",
            "feature/feature_view/driver_stats/last_rating",
            "feature/feature_view/driver_recent/fare_mean_1h",
            "feature/on_demand_feature_view/ride_facts/rating_by_km",
        )
        paths = (*features, "feature_view/driver_stats", "training_set/january")

        def shown() -> dict[str, tuple[bool, bool]]:
            pages = {path: httpx.get(f"{url}/p/{PROJECT}/{path}").text for path in paths}
            words = ("Berlin", '"row">Mean<', "<dt>Mean<", "Mean over", 'class="bars', '">to</span>')
            return {path: (any(word in page for word in words), "hidden: " in page) for path, page in pages.items()}

        assert shown() == dict.fromkeys(paths, (True, False))
        head = registry.definitions.chain(PROJECT).head
        views = (tagged(view, {"personal": "yes"}) for view in (CHANGED_STATS, driver_recent))
        registry.definitions.apply(PROJECT, head, put(PROJECT, *views), author="bob", message="", commit="")
        assert shown() == dict.fromkeys(paths, (False, True))


def tagged(view: FeatureView, tags: dict[str, str]) -> FeatureView:
    return view.model_copy(update={"fields": tuple(each.model_copy(update={"tags": tags}) for each in view.fields)})


def test_what_is_computed_when_it_is_read_is_counted_in_training_sets(local: httpx.Client) -> None:
    for path, name in (
        ("feature_view/driver_recent", "fare_mean_1h"),
        ("on_demand_feature_view/ride_facts", "rating_by_km"),
    ):
        (row,) = [
            each for each in rows_of(local, path) if f'/{name}"' in each and "<th" in each and "share" not in each
        ]
        assert 'class="bars small"' in row
        (listed,) = [each for each in rows_of(local, "features") if f'/{name}"' in each]
        assert '<td class="number">–' not in listed
        page = local.get(f"/p/{PROJECT}/feature/{path}/{name}").text
        assert f'of the training set <a href="/p/{PROJECT}/training_set/january">' in page
        assert 'class="bars' in page
    for name in ("last_rating", "city", "fare_mean_1h", "rating_by_km"):
        (row,) = [each for each in rows_of(local, "training_set/january") if f"<code>{name}</code></a>" in each]
        assert 'class="bars small"' in row


def test_of_a_view_without_statistics_none_are_promised(local: httpx.Client) -> None:
    for path, is_promised in (
        ("feature_view/idle", False),
        ("feature/feature_view/idle/unused", False),
        ("feature_view/nightly", True),
    ):
        page = local.get(f"/p/{PROJECT}/{path}").text
        assert ("left statistics" in page, "statistics=False" in page) == (is_promised, not is_promised)


def test_features_are_sorted_and_paged(local: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "PER_PAGE", 4)

    def names(query: str) -> list[str]:
        pages = [rows_of(local, f"features?page={page}&{query}") for page in range(1, 5)]
        found = [[re.findall(r'/feature/\w+/\w+/(\w+)"', row) for row in rows] for rows in pages]
        return [name for page in found for row in page for name in row[:1]]

    by_name = names("")
    assert by_name == sorted(by_name)
    assert len(by_name) == len(set(by_name)) == 12
    assert names("order=desc") == by_name[::-1]
    # Nulls and NaN: of 2 windows, of a feature on demand, of city and last_rating; the others have no figures.
    counted = [*names("sort=nulls&order=desc")[:4], *names("sort=nulls")[:4][::-1]]
    computed, stored = ["fare_mean_1h", "rating_by_km"], ["city", "last_rating"]
    assert counted == [*computed, *stored, *computed[::-1], *stored]


def rows_of(local: httpx.Client, path: str) -> list[str]:
    return re.findall("<tr>.*?</tr>", local.get(f"/p/{PROJECT}/{path}").text, re.DOTALL)


def test_a_registry_that_is_away_is_said_plainly(registry: Registry) -> None:
    with serving_registry(registry) as gone:
        pass
    with open_http(gone, token="t" * 40) as remote, serving_catalog(remote) as url:
        answer = httpx.get(f"{url}/p/{PROJECT}")
        admin = Token("t", "0" * 64, Role.ADMIN)
        # Only whoever sits at this machine reads where the registry was looked for.
        scope = {
            "method": "GET",
            "headers": [],
            "path": f"/p/{PROJECT}",
            "query_string": b"",
            "state": {"token": admin},
        }
        far = Catalog(remote)._response(scope)
    assert (far.status_code, gone.encode() in far.body, gone in answer.text) == (503, False, True)
    assert (answer.status_code, "The registry cannot be read" in answer.text) == (503, True)
    assert "Traceback" not in answer.text
    assert RegistryUnavailableError("x").message == "x"


def test_a_page_that_cannot_be_made_says_so_and_no_more(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("featurestore_registry.catalog.site.activity_of", lambda *_: 1 // 0)
    with serving_catalog(registry) as url:
        answer = httpx.get(f"{url}/p/{PROJECT}")
        assert httpx.get(f"{url}/p/{PROJECT}/revisions").status_code == 200
    assert (answer.status_code, "could not be made" in answer.text) == (500, True)
    assert "ZeroDivisionError" not in answer.text
    assert "ZeroDivisionError" in caplog.text
