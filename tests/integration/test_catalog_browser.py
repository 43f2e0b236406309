"""The catalog in a real Chromium: one browser and one registry for all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from featurestore_registry.http.oidc import IdentityProvider, Issuer
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change
from playwright.sync_api import Browser, BrowserContext, Page, expect
from support.catalog_registry import HOSTILE, HTML, OTHER, PROJECT, filled
from support.catalog_server import serving_catalog
from support.chromium import chromium
from support.oidc_issuer import OidcIssuer, oidc_issuer
from support.registry_server import serving_registry

pytestmark = pytest.mark.uncounted

WIDE, NARROW = 1280, 390
"""Pixels: a desktop and a phone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with filled(tmp_path_factory.mktemp("catalog")) as registry:
        yield registry


@pytest.fixture(scope="module")
def url(registry: Registry) -> Iterator[str]:
    with serving_catalog(registry) as url:
        yield url


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Open]:
    """Open pages that must say nothing on the console, and ask no other host."""
    wrong: list[str] = []
    contexts: list[BrowserContext] = []

    def open_page(path: str, width: int = WIDE, base: str = url, **options: Any) -> Page:
        context = browser.new_context(base_url=base, viewport={"width": width, "height": 900}, **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: wrong.append(f"dialog: {dialog.message}") or dialog.dismiss())
        page.on("request", lambda request: request.url.startswith(f"{base}/") or wrong.append(request.url))
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


PAGES = (
    f"/p/{PROJECT}",
    *(
        f"/p/{PROJECT}/{path}"
        for path in (
            "search?q=driver", "features", "feature_view", "feature_view/driver_stats", "feature_view/driver_recent",
            "feature_view/idle", "on_demand_feature_view/ride_facts", "feature_service/ride_eta_v1", "entity/driver",
            "source/trips", "push_source/trips_live", "feature/feature_view/driver_stats/last_rating",
            "feature/feature_view/driver_stats/city", "training_set", "training_set/january", "consumer",
            "consumer/eta_model", "revisions", "revision/2", "compare/1/3", "history/feature_view/driver_stats",
            "audit", "monitor", "monitor/ride_drift", "monitor/night_drift", "lineage", "lineage?of=driver_stats",
            "lineage?of=trips&down=9&columns=1",
        )
    ),
    "/",
)  # fmt: skip
"""One of each kind."""


@pytest.mark.slow(25)
def test_every_page_is_for_everybody(opened: Open) -> None:
    axe = Axe()
    wide, narrow = opened("/"), opened("/", NARROW, color_scheme="dark")
    for path in PAGES:
        for page in (wide, narrow):
            page.goto(path)
            # Of the dark scheme only the colours are others.
            more = {} if page is wide else {"runOnly": ["color-contrast"]}
            found = axe.run(page, options={"resultTypes": ["violations"], **more})
            assert found.violations_count == 0, f"{path}\n{found.generate_report()}"
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over == 0, path
            beside = page.evaluate(
                "[...document.querySelectorAll('.columns > *')].map(e => e.scrollWidth - e.clientWidth)"
            )
            assert max(beside, default=0) <= 0, f"{path}: a column runs into the next"


def test_a_search_follows_what_is_typed(opened: Open) -> None:
    page = opened(f"/p/{PROJECT}/feature_view")
    page.keyboard.press("/")
    page.keyboard.type("ratin")
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “ratin”")
    expect(page.get_by_role("status")).to_have_text("6 results")
    assert page.url.endswith(f"/p/{PROJECT}/search?q=ratin")
    page.keyboard.type("g_by")
    expect(page.get_by_role("heading", level=1)).to_have_text("Results for “rating_by”")
    expect(page.locator(".hits li")).to_have_count(3)  # the feature, its view, the service that reads it
    expect(page.locator("#find")).to_be_focused()
    page.get_by_role("link", name="ride_facts:rating_by_km").click()
    assert page.url.endswith("/feature/on_demand_feature_view/ride_facts/rating_by_km")
    page.go_back()
    expect(page.locator(".hits li")).to_have_count(3)
    page.go_back()  # however much was typed, it is one step
    expect(page.get_by_role("heading", level=1)).to_have_text("Feature views")


def test_facets_narrow_a_search_and_every_address_can_be_sent(opened: Open) -> None:
    page = opened(f"/p/{PROJECT}/search")
    page.get_by_role("complementary").get_by_role("link", name="feature views").click()
    expect(page.locator(".hits li")).to_have_count(5)
    page.get_by_role("complementary").get_by_role("link", name="growth").click()
    expect(page.locator(".hits li")).to_have_count(1)
    other = opened(page.url)
    expect(other.locator(".hits li")).to_have_count(1)
    other.get_by_role("link", name="kind feature views").click()
    assert "kind=" not in other.url
    assert other.locator(".hits li").count() > 1


def test_from_home_to_a_diff_by_links(opened: Open) -> None:
    page = opened("/")
    page.get_by_role("link", name=PROJECT).click()
    page.get_by_role("main").get_by_role("link", name="driver_stats").first.click()
    page.get_by_role("link", name="revision 2").click()
    expect(page.locator(".diff .minus")).to_have_text(re.compile("rating AS last_rating"))
    expect(page.locator(".diff .plus")).to_have_text(re.compile(r"avg\(rating\) AS last_rating"))
    expect(page.get_by_text("2 days")).to_be_visible()
    page.get_by_role("link", name="Compare with the newest").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("From revision 2 to 3")
    expect(page.get_by_role("main")).to_contain_text("legacy_scores")


def test_lineage_is_followed_step_by_step_by_keyboard_and_by_mouse(opened: Open) -> None:
    page = opened(f"/p/{PROJECT}/feature_view/driver_stats")
    page.get_by_role("main").get_by_role("link", name="Lineage").click()
    drawing = page.locator("svg.lineage").first
    boxes = drawing.locator("a text:not(.under)")
    expect(boxes).to_have_text(
        ["driver", "trips", "driver_stats", "ride_facts", "ride_eta_v1", "ride_eta_v2", "january", "stats_drift"]
    )
    page.get_by_role("link", name="more downstream").click()
    expect(boxes).to_have_count(10)
    expect(boxes.nth(7)).to_have_text("eta_model")
    expect(boxes.last).to_have_text(re.compile("_drift"))
    expect(page.get_by_text("Nothing more downstream")).to_be_visible()
    page.get_by_role("link", name="Show columns").click()
    expect(drawing.locator("a", has_text="last_rating").first).to_be_visible()
    assert drawing.locator("path.copied").count() >= 1
    assert drawing.locator("path.influences").count() >= 1
    assert drawing.locator("path.rows").count() >= 1
    # The table says what the drawing shows.
    expect(page.locator("tr", has_text="trips.city")).to_contain_text("is copied to")
    expect(page.locator("tr", has_text="trips.rating").first).to_contain_text("influences")
    drawing.locator("a").first.focus()
    page.keyboard.press("Tab")
    focused = page.locator("svg.lineage a:focus")
    expect(focused).to_have_count(1)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/lineage\?of=[^&]*$"))
    page.locator("svg.lineage a.here").click()
    expect(page.locator("svg.lineage")).to_have_count(0)  # what is asked for leads to its own page


def test_what_is_shown_first_can_be_copied(opened: Open) -> None:
    page = opened(f"/p/{PROJECT}/feature_service/ride_eta_v1", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy: In a terminal").click()
    expect(page.get_by_role("button", name="Copy: In a terminal")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == "fs online --service ride_eta_v1 --entity driver_id=1"


def test_everything_works_without_script(opened: Open) -> None:
    page = opened(f"/p/{PROJECT}", NARROW, java_script_enabled=False)
    page.get_by_role("searchbox").fill("rating_by")
    page.get_by_role("button", name="Search").click()
    expect(page.locator(".hits li")).to_have_count(3)
    page.get_by_role("link", name="All features").click()
    for sorted_by in ("sort=nulls", "order=desc"):
        page.get_by_role("link", name="Nulls").click()
        page.wait_for_url(f"**{sorted_by}**")  # the next click is on the page that comes
    expect(page.locator("tbody th a").first).to_have_text("fare_mean_1h")  # its NaN count, too
    assert page.get_by_role("button", name="Copy").count() == 0


def test_the_keyboard_is_enough(opened: Open) -> None:
    page = opened(f"/p/{PROJECT}")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    first = page.get_by_role("main").get_by_role("link").first
    expect(first).to_be_focused()
    assert first.evaluate("element => getComputedStyle(element).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("/monitor/"))
    # Everything that can be reached by Tab shows that it is, and nothing holds the focus.
    seen = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        here = page.evaluate("document.activeElement === document.body ? '' : document.activeElement.outerHTML")
        if not here or (here in seen and "Skip to" in here):
            break
        seen.add(here)
    targets = page.locator("a[href], button, input, [tabindex='0']").count()
    assert len(seen) > targets * 0.8


def test_nothing_that_is_planted_runs(opened: Open, registry: Registry) -> None:
    page = opened(f"/p/{HOSTILE}")
    links = page.locator(f"a[href^='/p/{HOSTILE}/']").evaluate_all("all => all.map(each => each.getAttribute('href'))")
    assert len(links) > 10
    for link in dict.fromkeys(links):
        page.goto(link)
        assert page.locator("img[src=x]").count() == 0
        assert "\u202e" not in page.content()
    page.get_by_role("searchbox").fill(HTML)
    expect(page.get_by_role("heading", level=1)).to_contain_text("<script>alert(2)</script>")
    assert registry.definitions.projects() == [HOSTILE, OTHER, PROJECT]


def test_two_tabs_while_things_change(opened: Open, registry: Registry) -> None:
    one = opened(f"/p/{OTHER}")
    other = one.context.new_page()
    other.goto(f"/p/{OTHER}/entity/customer")
    head = registry.definitions.chain(OTHER)
    record = registry.definitions.read(OTHER).records[0]
    registry.definitions.apply(
        OTHER, head.head, [Change("delete", "entity", "customer")], author="bob", message="gone", commit=""
    )
    one.reload()
    expect(one.get_by_role("main")).to_contain_text("Nothing is defined here any more")
    with other.expect_response(lambda answer: answer.status == 404):
        pass_over = other.goto(f"/p/{OTHER}/entity/customer")
    assert pass_over is not None
    registry.definitions.apply(
        OTHER,
        registry.definitions.chain(OTHER).head,
        [Change("put", "entity", "customer", record)],
        author="bob",
        message="back",
        commit="",
    )
    other.reload()
    expect(other.get_by_role("heading", level=1)).to_have_text("customer")
    expect(other.get_by_role("main")).to_contain_text("Deleted by revision 2")


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with oidc_issuer() as issuer:
        yield issuer


def test_somebody_logs_in_sees_what_the_role_shows_and_logs_out(
    browser: Browser, registry: Registry, issuer: OidcIssuer
) -> None:
    roles = {"viewers": f"viewer:{PROJECT}", "readers": f"reader:{PROJECT}", "ops": "admin"}
    provider = IdentityProvider(Issuer(issuer.url, "registry", roles))
    with ThreadPoolExecutor(1) as other:  # this thread runs the loop of Playwright
        other.submit(provider.refresh).result()
    view, wide = f"/p/{PROJECT}/feature_view/driver_stats?page=1", {"viewport": {"width": WIDE, "height": 900}}
    with serving_registry(registry, provider=provider) as url:
        for group, statistics, audit in (("viewers", 0, 0), ("readers", 1, 0), ("ops", 1, 1)):
            issuer.person = {"sub": group, "groups": [group], "email": f"{group}@x.example", "email_verified": True}
            context = browser.new_context(base_url=url, **wide)
            page = context.new_page()
            page.goto(view)
            page.get_by_role("link", name="Log in").click()
            page.wait_for_url(f"{url}{view}")  # where they wanted to go
            assert page.get_by_role("columnheader", name="Distribution").count() == statistics
            assert page.get_by_text("they want the role").count() == 1 - statistics
            assert page.get_by_role("link", name="Audit log").count() == audit
            assert page.request.get(f"{url}/p/{PROJECT}/audit").status == (200 if audit else 403)
            assert page.request.get(f"{url}/p/{OTHER}").status == (200 if audit else 404)
            page.get_by_role("button", name="Log out").click()
            expect(page.get_by_role("heading", level=1)).to_have_text("Log in to see the catalog")
            assert page.request.get(f"{url}{view}").status == 401
            context.close()
