"""The page of a search. As somebody types, the same page is asked for again, and its middle put in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from featurestore_registry.catalog.asking import Ask
from featurestore_registry.catalog.frame import Page
from featurestore_registry.catalog.search import FACETS, PER_PAGE, marked
from featurestore_registry.catalog.search import search as look


def search(ask: Ask) -> Page:
    """Return the page."""
    query, page = ask.text("q"), ask.page_number()
    wanted = {name: ask.text(name) for name in FACETS}
    indexes = (ask.site.index(ask.project), ask.site.named(ask.project, ask.state).index)
    found = look(indexes, query, wanted, page)
    return Page(
        "search.html",
        {
            "query": query,
            "wanted": wanted,
            "found": found,
            "page": page,
            "pages": -(-found.total // PER_PAGE),
            "marked": partial(marked, terms=found.terms),
            "with_facet": partial(_with, ask, query, wanted),
            "number_page": lambda number: ask.at("search", q=query, **wanted, page=number),
        },
    )


def _with(ask: Ask, query: str, wanted: Mapping[str, str], name: str, value: str) -> str:
    """Return the address of the same search with another value of one facet, or none."""
    return ask.at("search", q=query, **{**wanted, name: value})
