"""What the parts of the suite share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from featurestore_registry.interface import Registry

Reopen = Callable[[], Registry]

DOCUMENTS: list[dict[str, Any]] = [
    {},
    {"integer": 2**63 - 1, "beyond": 10**40, "negative": -(2**63), "float": 0.1, "tiny": 5e-324, "zero": -0.0},
    {"true": True, "false": False, "null": None, "": "", " ": [[], {}, [None, [1, [2.5]]]]},
    {"text": "naïve 北京 🛫 \u0000 \x1f \x7f \u2028 \" \\ ' %s {} ; --", "🛫": {"ключ": "значение"}},
    {"composed": "\u00e9", "decomposed": "e\u0301"},
    {"megabyte": "é🛫" * 170_000, "list": list(range(50_000))},
]
"""Documents that come back as they were given."""

NAMES = ["a", "A", "á", "a\u0301", "a b", "a'b", 'a"b', "a%b_", "a\\b", "a:b", "a/b", "", "🛫" * 300, "null"]
"""Names and keys that are all different from each other."""


class RegistryFixtures:
    """The two fixtures of the suite."""

    author: str | None = None
    """Who applies, where the registry knows that better than its caller."""

    @pytest.fixture
    def reopen(self) -> Reopen:
        """Return a function that opens one and the same registry, empty at first; override it."""
        raise NotImplementedError("override the fixture reopen")

    @pytest.fixture
    def registry(self, reopen: Reopen) -> Iterator[Registry]:
        """Give an empty registry."""
        with reopen() as registry:
            yield registry


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Run ``work(0) … work(count - 1)`` in threads that start together; return results, exceptions as values."""
    barrier = threading.Barrier(count)

    def one(number: int) -> Any:
        barrier.wait()
        try:
            return work(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))
