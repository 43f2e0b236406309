"""What a training set gives to those who train models: tensors, and facts for trackers of experiments."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurestore.ledger.saved_sets import SavedSet
from featurestore.training.certificate import Certificate
from featurestore.training.facts import CERTIFICATE, SCHEMA, facts_of, schema_of, set_id
from featurestore.training.joins import JoinedRows, SpanRows
from featurestore.training.tensors import tensor_arrays, to_tensorflow, to_torch
from featurestore.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa


class ForModels:
    """The part of a `TrainingSet` about models."""

    _workspace: Workspace
    _rows: JoinedRows | SpanRows
    _saved: SavedSet | None
    _saved_as: str | None

    @property
    def certificate(self) -> Certificate:
        """Facts about the set."""
        raise NotImplementedError

    def joined(self, complaint: str) -> JoinedRows:
        """Return the join; raises TrainingSetError for a view's rows in a span."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Return the hash of the feature columns."""
        raise NotImplementedError

    def to_arrow(self) -> pa.Table:
        """Return all columns."""
        raise NotImplementedError

    def to_torch(self, columns: Sequence[str] | None = None, *, copy: bool = True) -> dict[str, Any]:
        """Return columns as torch tensors by name, each of the shape ``(rows,)``, in the order of the rows.

        ``columns`` are names of `to_arrow`, by default the features and labels. Numbers and booleans keep their type:
        an Int64 becomes ``torch.int64``, a Float32 ``torch.float32``. A null Float is NaN. Raises InputError for
        columns of other types, such as texts and times, for nulls among integers and booleans, and where torch is not
        installed.

        Without ``copy`` a column in one piece without nulls shares the set's memory: never change it in place.
        ``torch.stack([*tensors.values()], dim=1)`` makes one tensor of columns of one type.
        """
        return to_torch(self._arrays(columns, copy=copy))

    def to_tensorflow(self, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return columns as TensorFlow tensors by name, each of the shape ``(rows,)``, in the order of the rows.

        As `to_torch`, whose types and errors it shares: an Int64 becomes ``tf.int64``. TensorFlow never writes to a
        tensor, so the memory is shared where it can be.
        """
        return to_tensorflow(self._arrays(columns, copy=False))

    def _arrays(self, columns: Sequence[str] | None, *, copy: bool) -> dict[str, Any]:
        table = self.to_arrow()
        own = table.num_columns - len(self._rows.schema)
        return tensor_arrays(table, table.column_names[own:] if columns is None else columns, copy=copy)

    @cached_property
    def id(self) -> str:
        """The set's id: a hash, 64 hex digits, of its rows, its columns and what its features come from.

        The same set made again has the same id, in whichever revision. Joins the rows, if they were not joined before.
        Raises TrainingSetError for a view's rows in a span.
        """
        rows = self.joined("has no id")
        identity = self._workspace.registry.definitions.chain(rows.request.project).identity
        return set_id(identity, rows, self.fingerprint())

    def facts(self) -> dict[str, str | int]:
        """Return what identifies the set, as texts and numbers for any tracker of experiments.

        Each name begins with ``featurestore.``: ``training_set`` (the `id`), ``saved_as``, ``project`` and
        ``project_id``, ``service`` (with commas between several), ``revision`` and ``revision_hash``, ``definition`` (a
        hash of what the features come from), ``code`` (of on-demand features), ``rows``, ``features``, ``labels``,
        ``left_out``, ``recomputed_rows`` and ``certified_at`` of the certificate. What does not apply is left out.
        Raises as `certificate`.
        """
        rows = self.joined("has no facts")
        return facts_of(self._workspace, rows, self.certificate, self.id, self._saved, self._saved_as)

    def log_to_mlflow(self, *, run_id: str | None = None, context: str = "training") -> str:
        """Put the set into an MLflow run, by default the active one, as a dataset input, and return the run's id.

        The dataset's digest is the first 32 digits of the set's `id`. With ``context="training"`` the run also gets the
        `facts` as tags, and ``featurestore/certificate.json`` and ``schema.json`` as artifacts: a model that is logged
        in this run can then be given the same features, by `FeatureStore.features_for`. Logging the set again changes
        nothing. Needs the extra ``mlflow``. Raises InputError without a run, and for one that has another set to train
        with; TrackerError.
        """
        from featurestore.tracking.mlflow import SetInput, log_set

        rows = self.joined("cannot be logged")
        facts, own = self.facts(), rows.frame.own.to_arrow().schema
        source = {name.partition(".")[2]: value for name, value in facts.items() if name.partition(".")[2] in _SOURCE}
        given = SetInput(
            id=self.id,
            name=".".join(str(source[name]) for name in ("project", "service", "saved_as") if name in source),
            rows=self.certificate.rows,
            columns={field.name: field.type for field in (*own, *rows.schema)},
            source=source,
            facts=facts,
            documents={CERTIFICATE: self.certificate.to_dict(), SCHEMA: schema_of(rows, own)},
        )
        return log_set(given, run_id=run_id, context=context)


_SOURCE = "project", "service", "revision", "saved_as"
"""Facts that say where a set comes from."""
