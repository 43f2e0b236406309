"""The catalog in a real Chromium: one browser and one registry for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from axe_playwright_python.sync_playwright import Axe
from featurestore_registry.sql import open_registry
from playwright.sync_api import Browser, Page
from support.catalog_registry import PROJECT, fill
from support.catalog_server import serving_catalog
from support.chromium import chromium
from support.clock import ManualClock

WIDE, NARROW = 1280, 390
"""Pixels: a desktop and a phone."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    clock = ManualClock(0)
    path = tmp_path_factory.mktemp("catalog") / "registry.db"
    with open_registry(f"sqlite:///{path}", clock=clock) as registry:
        fill(registry, clock)
        with serving_catalog(registry) as url:
            yield url


Open = Callable[..., Page]


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Open]:
    """Open pages that must say nothing on the console, and ask no other host."""
    wrong: list[str] = []
    contexts = []

    def open_page(path: str, width: int = WIDE, **options: object) -> Page:
        context = browser.new_context(base_url=url, viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("request", lambda request: request.url.startswith(f"{url}/") or wrong.append(request.url))
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
            "audit",
        )
    ),
    "/",
)  # fmt: skip
"""One of each kind."""


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
