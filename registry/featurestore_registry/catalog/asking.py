"""What somebody asks for: a page of a project, with what is needed to make it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from featurestore_registry.auth import Role
from featurestore_registry.catalog.activity import ViewActivity
from featurestore_registry.catalog.addresses import project_address
from featurestore_registry.catalog.findings import Findings
from featurestore_registry.catalog.history import History
from featurestore_registry.catalog.project import Project
from featurestore_registry.catalog.site import Site
from featurestore_registry.catalog.visitor import Visitor
from featurestore_registry.catalog.words import MOST_ASKED, to_us
from featurestore_registry.errors import AuthError, did_you_mean
from featurestore_registry.interface import JournalReader, LedgerReader
from featurestore_registry.records import State

Made = TypeVar("Made")

MOST_PAGES = 10_000


class NotThere(Exception):
    """There is nothing by this name, or nothing that this visitor may know of."""

    def __init__(
        self, what: str, name: str, known: Sequence[str] = (), link: tuple[str, str] | None = None, hint: str = ""
    ) -> None:
        super().__init__(f"There is no {what} {name!r}.")
        self.hint = hint or did_you_mean(name, known)
        self.link = link


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for a page of one project, by somebody who may see the project."""

    site: Site
    visitor: Visitor
    project: Project
    state: State
    segments: tuple[str, ...]
    """The address below the project."""
    query: Mapping[str, Sequence[str]]

    @property
    def now_us(self) -> int:
        """The registry's clock."""
        return to_us(self.state.now)

    @property
    def ledger(self) -> LedgerReader:
        """The registry's ledger."""
        return self.site.registry.ledger

    @property
    def journal(self) -> JournalReader:
        """The registry's journal."""
        return self.site.registry.journal

    @property
    def activity(self) -> Mapping[str, ViewActivity]:
        """How each view is."""
        return self.site.activity(self.project, self.state)

    @property
    def findings(self) -> Findings | None:
        """What monitors found last; None where the registry that is asked tells it only to readers."""
        try:
            return self.site.findings(self.project, self.state)
        except AuthError:
            return None

    @property
    def history(self) -> History:
        """Who changed what."""
        return self.site.history(self.project)

    def may(self, role: Role) -> bool:
        """Tell whether the visitor has a role here."""
        return self.visitor.can(role, self.project.name)

    def if_may(self, role: Role, make: Callable[[], Made]) -> Made | None:
        """Return what ``make`` reads; None for a visitor without the role, here or at the registry that is asked."""
        if not self.may(role):
            return None
        try:
            return make()
        except AuthError:
            return None

    def text(self, name: str) -> str:
        """Return a value of the query, without space around it; empty where it is not there."""
        found = self.query.get(name, ())
        return found[0].strip()[:MOST_ASKED] if found else ""

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """Return a value of the query that is one of some; the first of these for any other."""
        found = self.text(name)
        return found if found in choices else choices[0]

    def page_number(self) -> int:
        """Return which page of a list is asked for, from 1."""
        found = self.text("page")
        return min(max(int(found), 1), MOST_PAGES) if found.isascii() and found.isdigit() and len(found) < 9 else 1

    def at(self, *segments: str, **query: object) -> str:
        """Return the address of a page of this project."""
        return project_address(self.project.name, *segments, **query)
