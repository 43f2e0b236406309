"""What this project may delete from the stores: nothing with another identity, and nothing that it never had."""

from __future__ import annotations

from collections.abc import Iterable

from featurestore.errors import MismatchError
from featurestore.ledger.commits import REVISION
from featurestore.ledger.generations import used_generations
from featurestore.offline.interface import TableId
from featurestore.online.records.keys import view_prefix
from featurestore.online.records.marker import Marker, MarkerReader
from featurestore.workspace import Readers


class Ownership:
    """Which tables and online parts are the project's own, according to its registry now.

    Raises NotFoundError where the registry does not know the project: then it owns nothing for certain.
    """

    def __init__(self, workspace: Readers) -> None:
        self._workspace = workspace
        self.project = workspace.project
        snapshot = workspace.known_snapshot()
        self.chain = snapshot.chain
        used = used_generations(workspace.ledger, self.project)
        for name, registered in snapshot.views.items():
            used.setdefault(name, set()).add(registered.generation)
        self.used = used
        """The generations of each view that this registry remembers using."""
        self._owner = workspace.offline.owner(self.project)
        self._parts: dict[tuple[str, int], Marker | None] = {}

    def of_table(self, table: TableId, *, asked: bool = False) -> str | None:
        """Return why this project may not delete a table, None where it may.

        A table without an owner, which an earlier release wrote, may be deleted only when somebody ``asked`` for it.
        """
        if not self._had(table):
            return "this registry never had it"
        if self._owner is None:
            return None if asked else "it does not say yet whose it is; the next run that commits will mark it"
        if self._owner != self.chain.identity:  # whatever state its log is in
            return self._of(self._owner, self.chain.head)
        newest = self._workspace.offline.find_commit(table)
        return self._of(self._owner, self.chain.head if newest is None else newest.facts.get(REVISION, self.chain.head))

    def of_part(self, view: str, generation: int, *, asked: bool = False) -> str | None:
        """Return why this project may not delete an online part, None where it may."""
        marker = self._marker(view, generation)
        if marker is None:
            return None if asked or self._is_own_store() else "nothing in this online store says whose it is"
        return self._of(marker.project, marker.revision)

    def _of(self, project: str, revision: str) -> str | None:
        if project != self.chain.identity:
            return f"it belongs to the project with identity {project[:12]}"
        return None if revision in self.chain else "it was last written at a revision that this registry does not have"

    def check(self, tables: Iterable[TableId]) -> list[TableId]:
        """Return which tables that somebody asked to delete are to be deleted; raise MismatchError if one is not ours.

        Leaves out those that this registry never had and of which neither store holds anything: a registry that was
        lost and applied again does not know which earlier generations there were.
        """
        there = {*self._workspace.offline.tables(self.project)}
        ours = []
        for table in tables:
            if not (self._had(table) or table in there or self._is_online(table)):
                continue
            ours.append(table)
            for what, kept in (
                (f"table {table}", self.of_table(table, asked=True)),
                (f"online records of {table}", self.of_part(table.view, table.generation, asked=True)),
            ):
                if kept is not None:
                    raise MismatchError(
                        f"The {what} cannot be deleted: {kept}. Nothing was changed.",
                        hint="Check `registry`, `offline_store` and `online_store` in the settings; `fs doctor` says "
                        "more. If they are to belong together from now on, run `fs repair` first.",
                        table=str(table),
                    )
        return ours

    def parts(self) -> list[tuple[str, int]]:
        """Return every view and generation that this registry remembers using."""
        return [(view, generation) for view, used in self.used.items() for generation in sorted(used)]

    def _had(self, table: TableId) -> bool:
        return table.generation in self.used.get(table.view, ())

    def _is_online(self, table: TableId) -> bool:
        """Tell whether the online store holds a generation's marker, or records that an earlier release wrote."""
        if self._marker(table.view, table.generation) is not None:
            return True
        return any(self._workspace.online.scan(view_prefix(self.project, table.view, table.generation)))

    def _is_own_store(self) -> bool:
        return any(
            marker is not None and marker.project == self.chain.identity
            for marker in (self._marker(view, generation) for view, generation in self.parts())
        )

    def _marker(self, view: str, generation: int) -> Marker | None:
        key = view, generation
        if key not in self._parts:
            copies, _ = MarkerReader(self._workspace.online, view_prefix(self.project, *key)).read()
            foreign = (copy for copy in copies if copy is not None and copy.project != self.chain.identity)
            self._parts[key] = next(foreign, next((copy for copy in copies if copy is not None), None))
        return self._parts[key]
