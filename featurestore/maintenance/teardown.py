"""Deleting all data of a project whose definitions are gone."""

from __future__ import annotations

from featurestore.consistency.ownership import Ownership
from featurestore.errors import PlanError
from featurestore.offline.interface import TableId
from featurestore.online.records.keys import view_prefix
from featurestore.steps import step
from featurestore.workspace import Workspace


def drop_data(workspace: Workspace) -> None:
    """Delete every offline table and online record of the project, those of old generations included.

    Raises PlanError while definitions are registered: their data is still in use.
    """
    if workspace.snapshot().records:
        raise PlanError(
            f"Project {workspace.project!r} still has definitions.", hint="Another apply came meanwhile; look at it."
        )
    owned = Ownership(workspace)
    with step("teardown", f"delete the data of {workspace.project}"):
        for view, generation in owned.parts():
            if owned.of_part(view, generation, asked=True) is None:
                workspace.online.delete(view_prefix(workspace.project, view, generation))
        for table in workspace.offline.tables(workspace.project):
            if owned.of_table(table, asked=True) is None:
                workspace.offline.clean(table, keep=None)


def check_teardown(workspace: Workspace) -> None:
    """Raise MismatchError where data under the project's name is not this registry's to delete."""
    owned = Ownership(workspace)
    known = {TableId(workspace.project, view, generation) for view, generation in owned.parts()}
    owned.check(sorted(known | {*workspace.offline.tables(workspace.project)}, key=str))
