"""Deleting all data of a project whose definitions are gone."""

from __future__ import annotations

from featurestore.errors import PlanError
from featurestore.metadata.workspace import Workspace
from featurestore.online.keys import project_prefix
from featurestore.steps import step


def drop_data(workspace: Workspace) -> None:
    """Delete every offline table and online record of the project, those of old generations included.

    Raises PlanError while definitions are registered: their data is still in use.
    """
    if workspace.snapshot().records:
        raise PlanError(
            f"Project {workspace.project!r} still has definitions.", hint="Another apply came meanwhile; look at it."
        )
    with step("teardown", f"delete the data of {workspace.project}"):
        workspace.online.delete(project_prefix(workspace.project))
        for table in workspace.offline.tables(workspace.project):
            workspace.offline.clean(table, keep=None)
