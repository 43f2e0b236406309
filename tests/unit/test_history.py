"""Naming a revision by its number or by the beginning of its hash."""

from __future__ import annotations

import pytest
from featurestore_registry.records import Chain

from featurestore.errors import InputError, NotFoundError
from featurestore.plan.history import find_revision

CHAIN = Chain(("ab1200", "ab3400", "120000", "0f0000"))


@pytest.mark.parametrize(
    ("given", "number"),
    [(0, 0), (3, 3), ("4", 4), (" 2 ", 2), ("ab1", 1), ("AB34", 2), ("12", 3), ("0f0000", 4), ("0", 0)],
)
def test_a_revision_is_found(given: int | str, number: int) -> None:
    assert find_revision("shop", CHAIN, given) == number


@pytest.mark.parametrize(
    "given", [5, -1, 12, "5", "-1", "", " ", "x", "../1", "\u0661", "ab12000", "%00", 10**30, "9" * 5_000]
)
def test_an_unknown_revision_is_refused_with_the_newest(given: int | str) -> None:
    with pytest.raises(NotFoundError, match=r"'shop' has no revision .*; its newest is 4"):
        find_revision("shop", CHAIN, given)


def test_a_beginning_of_several_hashes_names_none() -> None:
    with pytest.raises(InputError, match=r"2 revisions begin with 'ab': 1, 2\."):
        find_revision("shop", CHAIN, "ab")
