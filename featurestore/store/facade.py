"""The FeatureStore facade but for training sets and what it says about serving."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from featurestore.definitions import Definition, FeatureSelection, FeatureView, PushSource
from featurestore.definitions.base import check_object_name
from featurestore.errors import InputError
from featurestore.project.loader import collect, load_definitions
from featurestore.project.settings import Settings, make_settings, read_settings, repo_folder
from featurestore.registered.applied import check_as_applied
from featurestore.registered.records import KINDS, kind_named
from featurestore.registered.snapshot import Snapshot
from featurestore.store.learning import Learning
from featurestore.tables import html_table
from featurestore.types.times import Clock, Instant, given_instant, system_clock
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa
    from featurestore_registry.lineage.graph import Lineage

    from featurestore.ingest import PushResult
    from featurestore.ingest.push import To
    from featurestore.materialization import RunResult
    from featurestore.plan import AppliedRevision, Plan, RevisionDiff
    from featurestore.request.features import FeaturesArgument
    from featurestore.serving import OnlineResponse
    from featurestore.statistics.profile import Profile, Profiles

Definitions = Definition | Iterable[Definition] | None
"""Objects, one or several; None for the feature repo's definitions."""

Views = str | FeatureView | Iterable[str | FeatureView] | None
"""Feature views by name or as objects, one or several; None for all."""

Revision = int | str
"""A revision by its number or by the beginning of its hash."""


def _several(given: Any) -> Iterable[Any]:
    """Return the arguments as an iterable; a text or a definition, which are iterable too, counts as one."""
    return (
        given if isinstance(given, Iterable) and not isinstance(given, str | Definition | FeatureSelection) else [given]
    )


class FeatureStore(Learning):
    """One project of a feature store.

    >>> store = FeatureStore("feature_repo")                                   # doctest: +SKIP
    >>> store.get_historical_features(entity_df, "delay_model_v1").to_pandas() # doctest: +SKIP

    ``repo`` is the folder of feature_store.yaml; or settings, as an object or a mapping as in that file (paths
    are then relative to the working directory). Stores open at their first use; `close`, or a ``with`` block, closes
    them. Threads, such as those of a web application, may share one for `get_online_features` and `push`; for
    everything else (plans and applies, runs, training sets, maintenance) make one for each thread. After a fork the
    child of a process that used the offline store gets OfflineStoreError for it: start such processes with ``spawn``.
    """

    def __init__(self, repo: str | Path | Settings | Mapping[str, Any] = ".", *, clock: Clock = system_clock) -> None:
        if isinstance(repo, str | Path):
            self.root = repo_folder(repo)
            settings = read_settings(self.root)
        else:
            self.root = repo_folder(".")
            settings = repo if isinstance(repo, Settings) else make_settings(repo)
        code = self._load if isinstance(repo, str | Path) else ()
        self._workspace = Workspace(self.root, settings, code=code, clock=clock)

    def __repr__(self) -> str:
        return f"FeatureStore(project {self.project!r} in {self.root})"

    def _repr_html_(self) -> str:
        # Schemes only: a URL may hold a password. Showing a store opens nothing.
        stores = {name: getattr(self.settings, name).url for name in ("registry", "offline_store", "online_store")}
        kinds = [(name.replace("_", " "), url.partition(":")[0]) for name, url in stores.items()]
        return html_table([("project", self.project), ("in", self.root), *kinds])

    @property
    def workspace(self) -> Workspace:
        """The wired project that the use cases receive."""
        return self._workspace

    @property
    def project(self) -> str:
        """The project's name."""
        return self.workspace.project

    @property
    def settings(self) -> Settings:
        """The project's settings."""
        return self.workspace.settings

    def _load(self) -> Sequence[Definition]:
        return load_definitions(self.root)

    def _wanted(self, objects: Definitions) -> Sequence[Definition]:
        if objects is None:
            return list(self._load())
        return collect(_several(objects))

    def _names(self, kind: type[Definition], given: Any) -> list[str] | None:
        """Return the names of names or objects, one or several; an object must be equal to what is applied."""
        if given is None:
            return None
        names = []
        for each in _several(given):
            if isinstance(each, kind):
                check_as_applied(self.workspace.snapshot(), each)
            elif not isinstance(each, str):
                raise InputError(f"{each!r} is not a {kind.title}.", hint="Pass its name, or the object.")
            names.append(each if isinstance(each, str) else each.name)
        return names

    def plan(self, objects: Definitions = None, *, refresh_schema: bool = False, prepare: bool = False) -> Plan:
        """Return what `apply` would do. Changes nothing.

        Without ``objects`` it compares the feature repo's definitions with what is applied, and plans to delete those
        that the repo does not hold; ``objects``, one or several, are only added or changed. With ``prepare`` applying
        the plan fills new views and generations before they are served: see `apply`. Raises RepositoryError,
        DefinitionError, SourceError, and InputError for anything that is not a definition.
        """
        from featurestore.plan import make_plan

        wanted = self._wanted(objects)
        is_whole = objects is None
        how = {"refresh_schema": refresh_schema, "prepare": prepare}
        return self._governed(make_plan(self.workspace, wanted, partial=not is_whole, of_repo=is_whole, **how))

    def _governed(self, plan: Plan) -> Plan:
        from featurestore.plan import governed

        return governed(self.workspace.registry.governance, self.workspace.snapshot(), plan)

    def apply(
        self,
        objects: Definitions = None,
        *,
        allow_breaking: bool = False,
        allow_destroy: bool = False,
        refresh_schema: bool = False,
        prepare: bool = False,
        message: str = "",
    ) -> Plan:
        """Plan and apply in one go, and return the plan with the revision it made.

        With ``prepare`` new views, and views that need a new generation or a rebuild, are first materialized by their
        new definitions and only then served: nobody reads an empty view in between. After a failure the next apply of
        the same definitions continues the work. A failed run raises MaterializationError.

        Raises what `plan` raises, ChangesNotAllowedError without the flag that a change needs, and
        RevisionConflictError, having changed nothing, when another apply came in between.
        """
        from featurestore.plan import make_plan

        wanted, partial = self._wanted(objects), objects is not None
        planned = make_plan(self.workspace, wanted, partial=partial, refresh_schema=refresh_schema, prepare=prepare)
        applied = self.apply_plan(planned, allow_breaking=allow_breaking, allow_destroy=allow_destroy, message=message)
        self.workspace.use_code(wanted, partial=partial)
        return applied

    def apply_plan(
        self, plan: Plan, *, allow_breaking: bool = False, allow_destroy: bool = False, message: str = ""
    ) -> Plan:
        """Apply a plan that `plan` made; raises as `apply`."""
        from featurestore.plan import apply_plan, check_allowed, check_code, check_readable

        check_allowed(plan, allow_breaking=allow_breaking, allow_destroy=allow_destroy)
        if plan.prepare:
            from featurestore.prepare import prepare

            check_code(self.workspace, plan)
            check_readable(self.workspace.snapshot(), plan)
            prepare(self.workspace, plan)
        return replace(plan, applied=apply_plan(self.workspace, plan, message=message))

    def history(self, limit: int = 20) -> Sequence[AppliedRevision]:
        """Return the newest applies, newest first: author, time, message, git commit, and a diff of each."""
        from featurestore.plan import read_history

        return read_history(self.workspace.registry.definitions, self.project, limit=limit)

    def diff(self, before: Revision, after: Revision | None = None) -> RevisionDiff:
        """Return what differs between two revisions, by default between one and the newest.

        A revision is its number or the beginning of its hash. What one apply changed is the ``diff`` of a `history`
        entry. Raises NotFoundError for an unknown revision.
        """
        from featurestore.plan import compare, snapshot_at

        definitions = self.workspace.registry.definitions
        return compare(*(snapshot_at(definitions, self.project, given) for given in (before, after)))

    def plan_rollback(
        self, revision: Revision, names: str | Iterable[str] | None = None, *, prepare: bool = False
    ) -> Plan:
        """Return what `rollback` would do. Changes nothing."""
        from featurestore.plan import plan_rollback

        chosen = None if names is None else list(_several(names))
        return self._governed(plan_rollback(self.workspace, revision, chosen, prepare=prepare))

    def rollback(
        self,
        revision: Revision,
        names: str | Iterable[str] | None = None,
        *,
        allow_breaking: bool = False,
        allow_destroy: bool = False,
        prepare: bool = False,
        message: str = "",
    ) -> Plan:
        """Apply, as a new revision, the definitions of an older one: of the whole project, or of ``names`` alone.

        It is planned, classed and refused like any other change, and raises as `apply`. The feature repo's files are
        not changed: the next apply of the repo undoes it. A view whose stored data does not fit the old definition
        begins a new generation. Raises NotFoundError for an unknown revision or name, InputError where the named
        definitions do not fit the others.
        """
        plan = self.plan_rollback(revision, names, prepare=prepare)
        return self.apply_plan(plan, allow_breaking=allow_breaking, allow_destroy=allow_destroy, message=message)

    def in_project(self, name: str) -> FeatureStore:
        """Return a store of another project with these settings: the same registry, and stores at the same places."""
        try:
            settings = self.settings.model_copy(update={"project": check_object_name(name)})
        except ValueError as error:
            raise InputError(f"{name!r} cannot be a project: {error}.") from None
        other = copy(self)
        other._workspace = Workspace(self.root, settings, code=other._load, clock=self.workspace.clock)
        return other

    def plan_promotion(
        self,
        names: str | Iterable[str],
        project: str,
        *,
        at: Revision | None = None,
        paths: Mapping[str, str] | None = None,
        has_servers: bool = True,
        prepare: bool = False,
    ) -> Plan:
        """Return what `promote` would do. Changes nothing."""
        from featurestore.plan import plan_promotion

        return self._governed(
            plan_promotion(
                self.workspace,
                list(_several(names)),
                project,
                at=at,
                paths=paths,
                has_servers=has_servers,
                prepare=prepare,
            )
        )

    def promote(
        self,
        names: str | Iterable[str],
        project: str,
        *,
        at: Revision | None = None,
        paths: Mapping[str, str] | None = None,
        has_servers: bool = True,
        allow_breaking: bool = False,
        allow_destroy: bool = False,
        prepare: bool = False,
        message: str = "",
    ) -> Plan:
        """Apply here definitions of another project of this registry, as it has them in its newest revision, or ``at``.

        What they depend on comes with them; what is not named stays. A source that is here keeps its path, a new one
        reads the path in ``paths`` or its own. Data and code do not travel: raises PlanError, having changed nothing,
        while a server of this project lacks the code of an on-demand view that changes, or none says that it has it
        (``has_servers=False``: none serves it yet). Raises as `apply`, and NotFoundError for an unknown name.
        """
        plan = self.plan_promotion(names, project, at=at, paths=paths, has_servers=has_servers, prepare=prepare)
        return self.apply_plan(plan, allow_breaking=allow_breaking, allow_destroy=allow_destroy, message=message)

    def plan_teardown(self) -> Plan:
        """Return what `teardown` would do. Changes nothing."""
        from featurestore.plan import make_plan

        return make_plan(self.workspace, [], partial=False)

    def teardown(self, plan: Plan | None = None) -> Plan:
        """Delete the project's definitions, offline tables and online records; other projects are not touched.

        Saved training sets lose the tables that they pin. The ledger keeps its history. The next teardown finishes one
        that was killed, or that failed after the definitions were removed.
        """
        from featurestore.maintenance.teardown import COMMAND, check_teardown, drop_data
        from featurestore.plan import apply_plan

        check_teardown(self.workspace)
        plan = plan or self.plan_teardown()
        applied = replace(plan, applied=apply_plan(self.workspace, plan, finish=COMMAND))
        drop_data(self.workspace)
        return applied

    def peek(self, view: str | FeatureView, rows: int = 10, *, dropped: bool = False) -> pa.Table:
        """Return the newest rows of a view in the offline store, newest first, as an Arrow table.

        With ``dropped`` returns rows of its source that runs do not take, and why (``fs_dropped``): a null key, no
        event time, or a duplicate: a later row has the same keys and times, or it repeats an event of its id.
        Grouped by reason, newest first.
        """
        from featurestore.maintenance.peek import peek, peek_dropped

        (name,) = self._names(FeatureView, [view]) or [""]
        look = peek_dropped if dropped else peek
        return look(self.workspace, self.workspace.snapshot().registered(name), rows)

    def profile(self, what: Any, *, source: bool = False) -> Profile | Profiles:
        """Return what the columns of a view, service, file, query or frame hold, drawn: counts, quantiles, values.

        Of a view every row version in its offline table; with ``source`` the rows that a first run would bring, by the
        code or the object: nothing need be applied. A service gives a profile for each view, a path or pattern names
        Parquet files, a SELECT reads views and sources. Raises NotFoundError, InputError, SourceError.
        """
        from featurestore.maintenance.profile import profile_alone, profile_named

        if isinstance(what, Definition) and not source:
            check_as_applied(self.workspace.snapshot(), what)
        return profile_alone(self.workspace, what, source=source) or profile_named(
            self.workspace, what, self._as_if_applied([what]) if source else self.workspace.snapshot(), source=source
        )

    def list(self, kind: str | type[Definition] | None = None) -> Sequence[Definition]:
        """Return the applied definitions, or those of one kind: ``feature_view``, ``entities``, or the class."""
        return self.workspace.snapshot().list(None if kind is None else kind_named(kind))

    def get(self, kind: str | type[Definition], name: str) -> Definition:
        """Return one applied definition; raises NotFoundError with the closest name."""
        return self.workspace.snapshot().get(KINDS[kind_named(kind)], name)

    def lineage(self, name: str, *, up: int | None = None, down: int | None = None, columns: bool = False) -> Lineage:
        """Return what something comes from (``up`` so many steps; None: all) and who uses it, to columns if wanted.

        ``name`` is ``view``, ``view:feature``, ``source``, ``source.column``, another name or ``kind:name``. Raises
        NotFoundError with the closest name.
        """
        from featurestore.maintenance.lineage import lineage_of

        return lineage_of(self.workspace, name, up=up, down=down, columns=columns)

    def materialize(
        self,
        start: Instant,
        end: Instant,
        views: Views = None,
        *,
        dry_run: bool = False,
    ) -> Sequence[RunResult]:
        """Bring rows with event time in [start, end) from the sources into the offline and online stores.

        Rerunning an interval appends nothing. ``views`` are names or objects, one or several. Raises IntervalError for
        an interval that is empty or ends in the future, MaterializationError naming the views that failed (the others
        are done).
        """
        from featurestore.materialization import materialize, succeeded

        span = given_instant(start), given_instant(end)
        return succeeded(materialize(self.workspace, *span, self._names(FeatureView, views), dry_run=dry_run))

    def materialize_incremental(
        self, end: Instant | None = None, views: Views = None, *, dry_run: bool = False
    ) -> Sequence[RunResult]:
        """Bring what is new since the last run, late rows and corrections included, up to ``end`` (default: now)."""
        from featurestore.materialization import materialize_incremental, succeeded

        end_us = None if end is None else given_instant(end)
        return succeeded(
            materialize_incremental(self.workspace, end_us, self._names(FeatureView, views), dry_run=dry_run)
        )

    def push(self, source: str | PushSource, df: Any, to: To = "both") -> PushResult:
        """Push rows to every feature view that reads a PushSource (its name, or the object) without SQL.

        ``df`` is any table (a pandas, Arrow or polars frame, a dict of lists, a list of dicts, any object with an Arrow
        stream) or the path of a Parquet file. It holds the views' join keys and features and the event time; a missing
        or null created time means the time of arrival. With ``to="both"`` rows are committed offline (at most one
        commit a second, shared by all callers) and then written online; rows pushed to ``"online"`` only are quick, and
        in no training set. Pushing rows again is safe. Raises NotFoundError, InputError, EntityKeyError and
        ValueTypeError before anything is written.
        """
        from featurestore.ingest import push

        (name,) = self._names(PushSource, [source]) or [""]
        return push(self.workspace, name, df, to)

    def _as_if_applied(self, features: Any) -> Snapshot:
        """Return the snapshot that an apply of the requested definitions would make; changes nothing."""
        from featurestore.plan import as_if_applied

        return as_if_applied(self.workspace, [] if features is None else list(_several(features)))

    def get_online_features(
        self,
        features: FeaturesArgument,
        entity_rows: Any,
        *,
        full_feature_names: bool = False,
    ) -> OnlineResponse:
        """Return the newest values of some entities from the online store, each with a true status.

        ``features`` is a feature service (or its name) or a list of ``"view:feature"``, ``"view:*"`` (all features),
        views and selections. ``entity_rows`` is any table with join keys and request data: a list of dicts, a dict of
        lists, a frame of pandas, polars or Arrow, or any object with an Arrow stream. `FeatureClient` makes the same
        call to a server. Raises EntityKeyError, InputError, NotFoundError, OnlineStoreUnavailableError.
        """
        from featurestore.serving import get_online_features

        return get_online_features(self.workspace, features, entity_rows, full_feature_names=full_feature_names)

    def close(self) -> None:
        """Close the stores; calling it twice is allowed."""
        self.workspace.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
