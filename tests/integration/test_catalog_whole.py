"""All pages of the catalog, read by each role, from another registry, from PostgreSQL, and of what no release writes.

A file of its own: its tests run the lines that those of `test_catalog.py` run, and a server that several tests share is
counted no longer once a test that is not counted has run beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from featurestore_registry.auth import Role
from featurestore_registry.http.client import open_registry as open_http
from featurestore_registry.interface import Registry
from featurestore_registry.records import Change
from featurestore_registry.sql import open_registry
from support.catalog_crawl import Served, crawl, serving_all_roles
from support.catalog_registry import CHANGED_STATS, OTHER, PROJECT, driver, fill, filled, put, rider_eta, trips
from support.catalog_server import serving_catalog
from support.clock import ManualClock

pytestmark = pytest.mark.uncounted


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


def crawled(served: Served, role: Role) -> dict[str, httpx.Response]:
    headers = {"authorization": f"Bearer {served.tokens[role, PROJECT]}"}
    with httpx.Client(base_url=served.url, headers=headers) as client:
        return crawl(client, f"/p/{PROJECT}")


def test_values_of_the_data_are_for_readers_and_the_audit_for_admins(served: Served) -> None:
    pages = {role: crawled(served, role) for role in (Role.VIEWER, Role.READER, Role.ADMIN)}
    for role, found in pages.items():
        # The fixture's runs count this city, and it is nowhere else.
        assert any("Berlin" in page.text for page in found.values()) == (role >= Role.READER), role
        assert any('class="bars' in page.text for page in found.values()) == (role >= Role.READER), role
        assert ("6.2\u00a0%" in found[f"/p/{PROJECT}/features"].text) == (role >= Role.READER), role  # nulls of city
        assert (f"/p/{PROJECT}/audit" in found) == (role >= Role.ADMIN), role
        assert {page.status_code for page in found.values()} == {200}
    told = pages[Role.ADMIN][f"/p/{PROJECT}/audit"].text
    assert ("ada@example.com" in told, "of-ada" in told) == (True, False)
    refused = served.ask(Role.READER, PROJECT, f"/p/{PROJECT}/audit")
    assert (refused.status_code, "this needs admin" in refused.text) == (403, True)
    # Which logins and tokens there were is for an admin of every project.
    for project, is_told in ((PROJECT, False), (None, True)):
        page = served.ask(Role.ADMIN, project, f"/p/{PROJECT}/audit?of=registry").text
        assert ("What was done to no project in particular" in page) == is_told


@pytest.mark.parametrize("role", [Role.ADMIN, Role.VIEWER])
def test_another_registrys_catalog_shows_the_same_as_far_as_the_token_goes(
    served: Served, local: httpx.Client, role: Role
) -> None:
    token = served.tokens[role, None if role is Role.ADMIN else PROJECT]
    with ExitStack() as stack:
        remote = stack.enter_context(open_http(served.url, token=token))
        client = stack.enter_context(httpx.Client(base_url=stack.enter_context(serving_catalog(remote))))
        if role is Role.VIEWER:
            assert client.get("/").headers["location"] == f"/p/{PROJECT}"
            view = client.get(f"/p/{PROJECT}/feature_view/driver_stats")
            assert (view.status_code, "they want the role" in view.text, "Berlin" in view.text) == (
                200,
                True,
                False,
            )
            audit = client.get(f"/p/{PROJECT}/audit")
            assert (audit.status_code, "this needs admin" in audit.text) == (403, True)
            return
        mine = crawl(local, f"/p/{PROJECT}")
        found = {path: client.get(path) for path in mine}
    assert {path for path in mine if mine[path].text != found[path].text} == set()


def test_a_registry_in_postgresql_makes_the_same_pages(local: httpx.Client, postgres_url: str) -> None:
    clock = ManualClock(0)
    with open_registry(postgres_url, clock=clock) as registry:
        fill(registry, clock)
        with serving_catalog(registry) as url, httpx.Client(base_url=url) as client:
            for path, page in crawl(local, f"/p/{PROJECT}").items():
                assert client.get(path).text == page.text, path


def test_documents_of_another_version_stop_no_page(tmp_path: Path) -> None:
    """Whatever stands in ledger and journal, pages say what can be said."""
    clock = ManualClock(0)
    with open_registry(f"sqlite:///{tmp_path}/registry.db", clock=clock) as registry:
        fill(registry, clock)
        odd: list[dict[str, Any]] = [{}, {"view": 7}, {"columns": "x", "rows": []}, {"released": []}]
        with serving_catalog(registry) as url, httpx.Client(base_url=url) as client:
            made_of_definitions = re.compile("/(search|compare|history|revision|features)")
            paths = [path for path in crawl(client, f"/p/{PROJECT}") if not made_of_definitions.search(path)]
            paths += [f"/p/{PROJECT}/features", f"/p/{PROJECT}/search"]
            for document in odd:
                for kind in (
                    "run",
                    "run_start",
                    "watermark",
                    "lease",
                    "statistics",
                    "edges",
                    "consumer",
                    "training_set",
                    "monitor",
                ):
                    for entry in registry.ledger.scan(PROJECT, kind) or []:
                        registry.ledger.append(PROJECT, kind, entry.key, document)
                registry.journal.append(PROJECT, "serving", [("web-1", document)])
                registry.journal.append(PROJECT, "audit", [("x", document)])
                found = {path: client.get(path).status_code for path in paths}
                assert {*found.values()} <= {200, 404}
                assert [path for path, code in found.items() if code == 404 and "training_set" not in path] == [
                    path for path in found if "/consumer/" in path or "consumer%3A" in path
                ]


def test_long_texts_make_no_long_page(tmp_path: Path) -> None:
    text, clock = "long " * 20_000, ManualClock(0)
    with open_registry(f"sqlite:///{tmp_path}/registry.db", clock=clock) as registry:
        records = [
            replace(
                record,
                document={**record.document, "deprecated": text},
                fields=tuple(replace(field, description=text) for field in record.fields),
                description=text,
                owner=text,
                tags={f"{number} {text}": text for number in range(100)},
            )
            for record in (change.record for change in put(PROJECT, driver, trips, CHANGED_STATS, rider_eta))
            if record is not None
        ]
        changes = [Change("put", record.kind, record.name, record) for record in records]
        registry.definitions.apply(PROJECT, "", changes, author=text, message=text, commit=text)
        registry.ledger.append(PROJECT, "consumer", "c", {"name": "c", "services": [text] * 50, "description": text})
        nested: dict[str, Any] = {"action": text}
        for _ in range(300):
            nested = {"action": text, "of": nested}
        registry.journal.append(PROJECT, "audit", [("x", nested)])
        with serving_catalog(registry) as url, httpx.Client(base_url=url) as client:
            kinds = [f"{record.kind}/{record.name}" for record in records]
            pages = ("", "search", "features", "revisions", "revision/1", "audit", "consumer", "consumer/c")
            for path in (*pages, *kinds):
                page = client.get(f"/p/{PROJECT}/{path}".rstrip("/"))
                assert (page.status_code, len(page.content) < 200_000) == (200, True), path
            page = client.get(f"/p/{PROJECT}/feature_view/driver_stats")
            assert page.text.count(text[:19_000]) == 1  # it begins its own page
