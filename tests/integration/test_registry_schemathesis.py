"""Every operation of the registry's description: schemathesis with an admin's token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from featurestore_registry.auth import Role, create_token
from featurestore_registry.sql import open_registry
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from support.examples import examples
from support.registry_server import serving_registry
from support.serving import until

pytestmark = pytest.mark.uncounted

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    unsupported_method,
]
OPERATIONS = [
    *(f"GET /api/v1/{name}" for name in ("projects", "state", "chain", "revisions/{revision}", "history")),
    *(f"GET /api/v1/{name}" for name in ("policy", "proposals", "ledger", "journal", "journal/newest", "tokens")),
    *(f"POST /api/v1/{name}" for name in ("apply", "approve", "ledger", "journal", "tokens")),
    *("PUT /api/v1/policy", "DELETE /api/v1/journal"),
    *("GET /api/v1/sessions", "POST /api/v1/sessions", "POST /api/v1/session", "DELETE /api/v1/session"),
    "GET /api/v1/login",
]


TAKE_NOTHING = ("GET /api/v1/login",)
"""So nothing that it is sent is wrong."""


class Served:
    def __init__(self, url: str, token: str) -> None:
        self.url, self.headers = url, {"authorization": f"Bearer {token}"}
        document = httpx.get(f"{url}/openapi.json", headers=self.headers).json()
        for name, methods in document["paths"].items():
            for parameter in (each for operation in methods.values() for each in operation.get("parameters", ())):
                if parameter["name"] == "kind":  # others are refused before anything is looked at
                    parameter["schema"]["enum"] = ["commit" if "journal" in name else "run"]
        found = schemathesis.openapi.from_dict(document).get_all_operations()
        self.operations: dict[str, Any] = {each.ok().label: each.ok() for each in found}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    path: Path = tmp_path_factory.mktemp("registry") / "registry.db"
    with open_registry(f"sqlite:///{path}") as registry:
        token, _ = create_token(registry.ledger, None, Role.ADMIN, expires_at_us=None, now_us=0)
        with serving_registry(registry) as url:
            asked = {"authorization": f"Bearer {token}"}
            until(lambda: httpx.get(f"{url}/api/v1/projects", headers=asked).status_code == 200)
            yield Served(url, token)


def test_these_are_the_operations(served: Served) -> None:
    assert set(served.operations) == {*OPERATIONS, "GET /health", "GET /ready"}


@pytest.mark.parametrize(
    ("label", "mode"),
    [
        (label, mode)
        for label in OPERATIONS
        for mode in GenerationMode
        if mode is GenerationMode.POSITIVE or label not in TAKE_NOTHING
    ],
)
def test_every_answer_is_as_described(served: Served, label: str, mode: GenerationMode) -> None:
    operation = served.operations[label]
    told: Counter[int] = Counter()

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples(5), deadline=None, suppress_health_check=list(HealthCheck))
    def conforms(case: schemathesis.Case) -> None:
        response = case.call(base_url=served.url, headers=served.headers)
        told[response.status_code] += 1
        more = [negative_data_rejection] if mode is GenerationMode.NEGATIVE else [ignored_auth]
        case.validate_response(response, checks=[*CHECKS, *more], headers=served.headers)

    conforms()
    assert told
