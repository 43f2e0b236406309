"""The part of the facade about what is expected of data, what is served, and how it compares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from featurestore.definitions import FeatureService, FeatureView, Monitor
from featurestore.types.times import MAX_INSTANT, MIN_INSTANT, Instant, check_span, given_instant
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from featurestore.materialization import RunResult
    from featurestore.materialization.deciding import Dropped
    from featurestore.materialization.deciding import Forgotten as ForgottenRows
    from featurestore.quality.parity import Parity
    from featurestore.quality.report import MonitorResult
    from featurestore.served.forgetting import Forgotten
    from featurestore.served.joining import PredictedRows


class Observing:
    """What a `FeatureStore` can say about expected and served features."""

    @property
    def workspace(self) -> Workspace:
        """The wired project that the use cases receive."""
        raise NotImplementedError

    def accept(self, run_id: str, reason: str, *, confirm: Callable[[str, int], bool] | None = None) -> RunResult:
        """Commit the rows of a run that was blocked because they are not as expected.

        The run is made again, and committed if its rows are the very same. ``confirm(view, rows)`` is asked before a
        rebuild withdraws rows; without it such a run is refused. A run that blocked ``apply(prepare=True)`` fills the
        generation that is prepared, where the feature repo still says so; then apply again. Raises NotFoundError for
        a run that is not the newest blocked one of its view, InputError without a reason, and MaterializationError,
        having committed nothing, for other rows, changed expectations, and a run that was accepted before.
        """
        from featurestore.materialization.accepting import accept
        from featurestore.prepare import as_prepared

        return accept(self.workspace, run_id, reason, confirm=confirm, prepared=lambda: as_prepared(self.workspace))

    def quarantined(self, view: str | FeatureView, generation: int | None = None) -> pa.Table:
        """Return the rows of a view that are set aside and that nobody released or dropped, as an Arrow table.

        Columns: ``fs_row_id``, ``fs_run`` (which set it aside), ``fs_found_ts``, ``fs_failed`` (the rules that it
        fails), join keys, event_ts, created_ts and stored fields, also those tagged ``personal``. ``generation`` is
        by default the one that is applied. Raises NotFoundError and DamagedFileError.
        """
        from featurestore.quarantine.listing import held_table

        return held_table(self.workspace, _name_of(view), generation)

    def release_quarantined(
        self,
        view: str | FeatureView,
        *,
        run: str | None = None,
        rows: str | Sequence[str] | None = None,
        all: bool = False,
        reason: str,
    ) -> RunResult:
        """Bring rows that are set aside into the offline store and online: those of a run, some by their ids, or all.

        They are known from now on (``created_ts``), so no training set sees them at an instant before that. Whoever
        releases, and the reason, are kept. Raises NotFoundError for rows that are not held, InputError without a
        reason or for rows of an earlier generation, and MaterializationError.
        """
        from featurestore.materialization.deciding import Choice, release

        return release(self.workspace, _name_of(view), Choice.given(run, rows, all), reason)

    def drop_quarantined(
        self,
        view: str | FeatureView,
        *,
        run: str | None = None,
        rows: str | Sequence[str] | None = None,
        all: bool = False,
        reason: str,
        generation: int | None = None,
    ) -> Dropped:
        """Give up rows that are set aside: no run takes them from the source again. Chosen as for a release.

        Raises NotFoundError for rows that are not held, and InputError without a reason.
        """
        from featurestore.materialization.deciding import Choice, drop

        return drop(self.workspace, _name_of(view), Choice.given(run, rows, all), reason, generation)

    def forget_quarantined(
        self, entity: Mapping[str, Any], views: str | Sequence[str] | None = None, *, dry_run: bool = False
    ) -> ForgottenRows:
        """Remove the values of an entity's rows from what is set aside, of all views or of some, in every generation.

        ``entity`` gives join keys; with part of a key the rows of all entities that have it go. Rows that were held are
        dropped, and no run brings them again: their ids are kept. With ``dry_run`` they are only counted.
        Raises InputError for a key of another type, NotFoundError, and MaterializationError while a release goes on.
        """
        from featurestore.materialization.deciding import forget

        return forget(self.workspace, entity, [views] if isinstance(views, str) else views, dry_run=dry_run)

    def read_served(
        self, service: str | FeatureService, start: Instant | None = None, end: Instant | None = None
    ) -> pa.Table:
        """Return what feature servers answered for a service in [start, end), as an Arrow table, oldest first.

        The service is declared with ``log=ServedLog(...)``. A row is one entity row of a request: ``request_id``,
        ``served_at``, ``key.*`` (as hashes where the log keeps them so), ``request.*``, ``value.*`` as it was stored
        (before defaults, NaN as NaN), ``status.*``, and for each view that was read what its record was. By default
        everything that is kept. Raises NotFoundError, DamagedFileError, IntervalError for a span without an instant,
        and InputError where a column changed its type.
        """
        from featurestore.served.keep import read_served

        name = service if isinstance(service, str) else service.name
        return read_served(self.workspace, name, *_kept(start, end))

    def read_predictions(
        self, service: str | FeatureService, start: Instant | None = None, end: Instant | None = None
    ) -> pa.Table:
        """Return the predictions that were logged for a service in [start, end), as an Arrow table, oldest first.

        ``request_id`` and ``row`` are those of `read_served`, ``predicted_at`` is the instant of the server that took
        them; ``model``, and ``prediction.*`` by name. A prediction that was logged twice is there twice. Of a name with
        values of several kinds most of them keep the column, others are beside it, as ``prediction.delay.text``. Raises
        as `read_served`, but for kinds.
        """
        from featurestore.served.joining import read_predictions

        name = service if isinstance(service, str) else service.name
        return read_predictions(self.workspace, name, *_kept(start, end))

    def join_predictions(
        self, service: str | FeatureService, start: Instant | None = None, end: Instant | None = None
    ) -> PredictedRows:
        """Return predictions beside what was served for them in [start, end): by request, row and model the last one.

        The columns are those of `read_served`, then those of predictions. Those that stand beside nothing are counted.
        Raises as `read_served`.
        """
        from featurestore.served.joining import join_predictions

        name = service if isinstance(service, str) else service.name
        return join_predictions(self.workspace, name, *_kept(start, end))

    def parity(self, service: str | FeatureService, start: Instant | None = None, end: Instant | None = None) -> Parity:
        """Compare what was served for a service in [start, end) with what should have been, and explain differences.

        Twice: with the point-in-time value of what was committed and online by then, and of what is known now. Every
        difference has one cause, the first that what is stored proves. Raises as `read_served`, and CodeMismatchError
        where the code of on-demand features is not loaded.
        """
        from featurestore.quality.comparing import parity

        name = service if isinstance(service, str) else service.name
        return parity(self.workspace, name, *self._span(start, end))

    def monitor(self, monitor: str | Monitor, until: Instant | None = None) -> MonitorResult:
        """Compare the last two windows before an instant with a monitor's baseline, and keep what was found.

        Both windows have to be too far from the baseline for an alarm. Too few rows or entities are not judged. A look
        back, to before what was found last, is not kept: it opens and ends no alarm. Raises
        NotFoundError for a monitor, a service or a training set that is not there, InputError where rows are chosen in
        ways that do not compare, and what reading the served log or the offline store raises.
        """
        from featurestore.quality.monitoring import monitor as run

        return run(self.workspace, monitor, None if until is None else given_instant(until))

    def forget_served(
        self, entity: Mapping[str, Any], services: str | Sequence[str] | None = None, *, dry_run: bool = False
    ) -> Forgotten:
        """Remove the rows of an entity from the served logs of all services, or of some, and their predictions.

        ``entity`` gives its join keys; with part of a key the rows of all entities that have it go. Servers that run
        hold up to a minute of rows that are in no file yet: call it again after that. Files that cannot be read, or are
        hashed with a secret that the settings do not have, stay: look at ``problems``. Raises InputError and
        NotFoundError, having changed nothing.
        """
        from featurestore.served.forgetting import forget

        named = [services] if isinstance(services, str) else services
        return forget(self.workspace, entity, named, dry_run=dry_run)

    def _span(self, start: Instant | None, end: Instant | None) -> tuple[int, int]:
        """Return a span in microseconds: from the first on where there is no start, up to now without an end."""
        start_us = 0 if start is None else given_instant(start)
        end_us = self.workspace.clock() + 1 if end is None else given_instant(end)
        check_span(start_us, end_us)
        return start_us, end_us


def _kept(start: Instant | None, end: Instant | None) -> tuple[int, int]:
    """Return a span in microseconds, without a bound where none is given: clocks of servers may be ahead."""
    start_us = MIN_INSTANT if start is None else given_instant(start)
    end_us = MAX_INSTANT + 1 if end is None else given_instant(end)
    check_span(start_us, end_us)
    return start_us, end_us


def _name_of(view: str | FeatureView) -> str:
    return view if isinstance(view, str) else view.name
