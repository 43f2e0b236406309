"""Naming a revision by its number or by the beginning of its hash."""

from __future__ import annotations

import pytest
from featurestore_registry.records import Chain

from featurestore.errors import InputError, NotFoundError
from featurestore.plan.history import find_revision

CHAIN = Chain(("ab001200", "ab003400", "12000000", "0f000000"))


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (0, 0),
        (3, 3),
        ("4", 4),
        (" 2 ", 2),
        ("ab001", 1),
        ("AB003", 2),
        ("1200", 3),
        ("0f000000", 4),
        ("0", 0),
        ("0002", 2),
    ],
)
def test_a_revision_is_found(given: int | str, number: int) -> None:
    assert find_revision("shop", CHAIN, given) == number


@pytest.mark.parametrize(
    "given",
    [5, -1, 12, 1200, "5", "12", "0f0", "ab0012000", "-1", "", " ", "x", "../1", "\u0661", "%00", 10**30, "9" * 5_000],
)
def test_an_unknown_revision_is_refused_with_the_newest(given: int | str) -> None:
    with pytest.raises(NotFoundError, match=r"'shop' has no revision .*; its newest is 4"):
        find_revision("shop", CHAIN, given)


def test_a_beginning_of_several_hashes_names_none() -> None:
    with pytest.raises(InputError, match=r"2 revisions begin with 'ab00': 1, 2\."):
        find_revision("shop", CHAIN, "ab00")
