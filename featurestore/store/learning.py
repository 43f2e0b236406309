"""The part of the facade about training sets: features, labels, and how models did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurestore.definitions import FeatureService, Label
from featurestore.registered.snapshot import Snapshot
from featurestore.store.observing import Observing
from featurestore.types.times import Instant, given_instant

if TYPE_CHECKING:
    from featurestore.engine.interface import AsOf
    from featurestore.ledger.consumers import Consumer
    from featurestore.ledger.saved_sets import SavedSet
    from featurestore.models import ModelFeatures
    from featurestore.quality.figures import Task
    from featurestore.quality.labelling import LabelledRows
    from featurestore.quality.performance import Performance
    from featurestore.request.features import FeaturesArgument
    from featurestore.training import TrainingSet


class Learning(Observing):
    """What a `FeatureStore` gives to train and to judge models."""

    def _as_if_applied(self, features: Any) -> Snapshot:
        raise NotImplementedError

    def get_historical_features(
        self,
        entity_df: Any = None,
        features: FeaturesArgument = None,
        *,
        timestamp_column: str = "event_timestamp",
        start: Instant | None = None,
        end: Instant | None = None,
        full_feature_names: bool = False,
        as_of: AsOf | None = None,
        direct: bool = False,
        labels: Label | Sequence[Label] = (),
    ) -> TrainingSet:
        """Return a training set: the entity frame's rows with each feature as it was known at the row's time.

        ``entity_df`` is any table (the how-to on training sets lists them), the path of a Parquet file, or a SQL query
        over the project's views and sources; it holds the join keys and ``timestamp_column``. ``features`` is a feature
        service (or its name) or a list of ``"view:feature"``, ``"view:*"`` (all features), views and selections.
        ``as_of="event"`` ignores when values became known. ``direct=True`` reads the sources instead of the offline
        store, by the definitions in the feature repo and by objects as you pass them: nothing need be applied. Without
        ``entity_df``, pass ``start``, ``end`` and one view to get the view's rows in that span.

        ``labels`` are columns after the features: what became known within a horizon after each row's time. Rows whose
        horizon has not ended, or is not committed, are left out; warnings, ``labels`` and the certificate count them.

        Raises EntityFrameError, EntityKeyError, NotFoundError, OutputNameClashError.
        """
        from featurestore.training import get_historical_features

        return get_historical_features(
            self.workspace,
            entity_df,
            features,
            snapshot=self._as_if_applied(features) if direct else None,
            timestamp_column=timestamp_column,
            start=None if start is None else given_instant(start),
            end=None if end is None else given_instant(end),
            full_feature_names=full_feature_names,
            as_of=as_of,
            direct=direct,
            labels=labels,
        )

    def label_served(
        self,
        service: str | FeatureService,
        labels: Label | Sequence[Label],
        start: Instant | None = None,
        end: Instant | None = None,
    ) -> LabelledRows:
        """Return what was served for a service in [start, end), with what became known within the labels' horizons.

        As `read_served`, with a column ``label.*`` for each label. Rows whose horizon has not ended, or is not
        committed, are left out and counted. Raises as `read_served`, and InputError where the log does not say for whom
        a label is.
        """
        from featurestore.quality.labelling import label_served

        name = service if isinstance(service, str) else service.name
        return label_served(self.workspace, name, labels, *self._span(start, end))

    def performance(
        self,
        service: str | FeatureService,
        label: Label,
        prediction: str,
        start: Instant | None = None,
        end: Instant | None = None,
        *,
        task: Task | None = None,
    ) -> Performance:
        """Compare what models predicted for a service in [start, end) with labels that are known, by model version.

        ``prediction`` is a name in `FeatureClient.log_prediction`. ``task`` is what is judged: ``"numbers"``: mean
        absolute error, root mean square error, bias (predicted less actual); ``"yes/no"`` (scores in [0, 1] or
        booleans, of a boolean label or one of 0 and 1): accuracy at 0.5, area under the ROC curve, log loss;
        ``"classes"``: accuracy. By default what fits label and predictions. Raises as `label_served`, and NotFoundError
        for a prediction that nobody logged.
        """
        from featurestore.quality.judging import performance

        name = service if isinstance(service, str) else service.name
        return performance(self.workspace, name, label, prediction, *self._span(start, end), task=task)

    def get_training_set(self, name: str) -> TrainingSet:
        """Build a saved training set again from its pinned versions, identical; TrainingSetChangedError otherwise."""
        from featurestore.training import get_training_set

        return get_training_set(self.workspace, name)

    def list_training_sets(self) -> Sequence[SavedSet]:
        """Return every saved training set by name, with its certificate and the table versions it is pinned to."""
        from featurestore.ledger.saved_sets import list_sets

        return list_sets(self.workspace.ledger, self.workspace.project, are_shown=True)

    def delete_training_set(self, name: str) -> None:
        """Delete a saved training set; its name is free again, and `fs gc` removes what only it pinned.

        Raises NotFoundError.
        """
        from featurestore.training import delete_training_set

        delete_training_set(self.workspace, name)

    def features_for(self, model: str) -> ModelFeatures:
        """Return the features that a model of MLflow was trained with, to serve them to it.

        ``model`` is ``models:/NAME@ALIAS``, ``models:/NAME/VERSION``, ``runs:/RUN_ID`` or a ``model_uri``; its run had
        `TrainingSet.log_to_mlflow`. MLflow is asked once, at this call, by its own settings (MLFLOW_TRACKING_URI), and
        the model itself is never loaded. Needs the extra ``mlflow``.

        Raises ModelError if the features' definition changed since (descriptions, owners and tags may), naming the
        feature, the old part and the new one, and for a model that was trained without a logged set. Raises InputError
        for another text, NotFoundError for an unknown model, version, alias or run, and TrackerError.
        """
        from featurestore.models import features_for

        return features_for(self.workspace, model)

    def register_model(self, model: str, *, owner: str = "") -> Consumer:
        """Note a registered model of MLflow as a consumer of the services that it was trained with, and return it.

        Plans and monitors of these services name it from then on, as ``mlflow/NAME@ALIAS`` or ``mlflow/NAME/VERSION``.
        Call it after the model is registered, and again when its alias moves: the consumer is replaced. Forget it with
        `fs consumer remove`. Raises as `features_for`, but not for changed definitions; ModelError for a model that was
        trained without a service.
        """
        from featurestore.models import register_model

        return register_model(self.workspace, model, owner=owner)

    def register_models(self) -> Sequence[Consumer]:
        """Note, as `register_model` does, every model of MLflow that an alias names, and return those of this project.

        For a timer or a pipeline: MLflow tells nobody when a model is registered or an alias moves. Models that were
        trained without a logged set, or in another project, are left alone, and nothing is forgotten. Raises
        TrackerError.
        """
        from featurestore.models import register_models

        return register_models(self.workspace)
