"""Every error of the feature store.

FeatureStoreError                       (featurestore_registry.errors: the registry's are its children too)
├── DefinitionError                     a definition is wrong in itself
├── SettingsError                       feature_store.yaml or an FS_ variable is wrong
├── RepositoryError                     the feature repo cannot be loaded
├── NotFoundError                       no such view, feature, service, source, training set
├── PlanError                           a plan cannot be made or applied
│   └── ChangesNotAllowedError          breaking or destructive changes without their flag
├── InputError                          what the caller passed is wrong; nothing was changed
│   ├── EntityFrameError                the entity frame
│   ├── EntityKeyError                  a join key: missing, ill-typed
│   ├── ValueTypeError                  a value does not fit its declared type
│   ├── OutputNameClashError            two output columns of one name
│   ├── OnDemandError                   an on-demand function failed, or returned something else
│   └── IntervalError                   a span of time
├── SourceError                         a source cannot be read
│   ├── SourceSchemaError               columns or types are not the declared ones
│   └── SourceFileError                 a file is missing, empty, truncated, foreign or damaged
├── MismatchError                       registry, offline store and online store do not belong together
├── MaterializationError                a run failed
│   ├── ExpectationError                rows are not as expected: nothing was committed
│   └── LeaseHeldError                  another run of the view is under way
├── EngineError                         the engine failed on well-formed input
├── DiskFullError                       no space left
├── OfflineStoreError
│   ├── ConcurrentCommitError           another writer committed first
│   ├── DamagedFileError                a file's hash is not the committed one
│   └── TableVersionError               a pinned version is gone
├── OnlineStoreError
│   ├── OnlineStoreUnavailableError     down, hung, or out of connections: try again
│   │   └── OnlineNodeUnavailableError  one node of a cluster, while the others answer
│   ├── OnlineStoreFullError            the store's memory or map is full
│   └── DamagedRecordError              a record's checksum or format is wrong
├── TrainingSetError
│   ├── CertificateError                the certificate does not hold: never expected
│   ├── TrainingSetChangedError         a saved set does not build to the same rows
│   └── CodeMismatchError               on-demand code is not what was applied
├── ModelError                          a model cannot be given the features that it was trained with
├── TrackerError                        MLflow is not installed, failed, or cannot be reached
└── ServerError                         a feature server failed, or is not one (raised by the client)
    └── ServerUnavailableError          it cannot be reached or did not answer in time: try again
"""

from __future__ import annotations

import errno

from featurestore_registry.errors import (
    ApprovalNeededError,
    AuthError,
    FeatureStoreError,
    LedgerConflictError,
    RecordNotFoundError,
    RegistryError,
    RegistryFormatError,
    RegistryUnavailableError,
    RevisionConflictError,
    did_you_mean,
)

__all__ = [
    "ApprovalNeededError",
    "AuthError",
    "CertificateError",
    "ChangesNotAllowedError",
    "CodeMismatchError",
    "ConcurrentCommitError",
    "DamagedFileError",
    "DamagedRecordError",
    "DefinitionError",
    "DiskFullError",
    "EngineError",
    "EntityFrameError",
    "EntityKeyError",
    "ExpectationError",
    "FeatureStoreError",
    "InputError",
    "IntervalError",
    "LeaseHeldError",
    "LedgerConflictError",
    "MaterializationError",
    "MismatchError",
    "ModelError",
    "NotFoundError",
    "OfflineStoreError",
    "OnDemandError",
    "OnlineNodeUnavailableError",
    "OnlineStoreError",
    "OnlineStoreFullError",
    "OnlineStoreUnavailableError",
    "OutputNameClashError",
    "PlanError",
    "RecordNotFoundError",
    "RegistryError",
    "RegistryFormatError",
    "RegistryUnavailableError",
    "RepositoryError",
    "RevisionConflictError",
    "ServerError",
    "ServerUnavailableError",
    "SettingsError",
    "SourceError",
    "SourceFileError",
    "SourceSchemaError",
    "TableVersionError",
    "TrackerError",
    "TrainingSetChangedError",
    "TrainingSetError",
    "ValueTypeError",
    "did_you_mean",
]

FORK_HINT = (
    'Start worker processes with multiprocessing.get_context("spawn"), or before their parent uses the offline store.'
)
"""The hint where a library does not survive a fork."""


class DefinitionError(FeatureStoreError):
    """A definition is wrong in itself; the message names object, field and value."""


class SettingsError(FeatureStoreError):
    """feature_store.yaml or an ``FS_`` environment variable is wrong."""


class RepositoryError(FeatureStoreError):
    """The feature repo cannot be loaded; ``details['traceback']`` is the user's own, trimmed to their files."""


class NotFoundError(FeatureStoreError):
    """No object of that name is registered."""


class PlanError(FeatureStoreError):
    """A plan cannot be made or applied."""


class ChangesNotAllowedError(PlanError):
    """A plan holds breaking or destructive changes and their flag was not given."""


class InputError(FeatureStoreError):
    """What the caller passed is wrong; nothing was changed."""


class EntityFrameError(InputError):
    """The entity frame lacks a column, holds null times, or is not a table."""


class EntityKeyError(InputError):
    """A join key is missing or ill-typed."""


class ValueTypeError(InputError):
    """A value does not fit its declared type."""


class OutputNameClashError(InputError):
    """Two output columns would have the same name."""


class OnDemandError(InputError):
    """An on-demand function failed, or returned something else; ``details['traceback']`` is the user's own."""


class IntervalError(InputError):
    """A span of time is empty, reversed, or ends in the future."""


class SourceError(FeatureStoreError):
    """A source cannot be read."""


class SourceSchemaError(SourceError):
    """The columns or types of a source are not the declared ones; found before any row is read."""


class SourceFileError(SourceError):
    """A source file is missing, empty, truncated, foreign or damaged."""


class MismatchError(FeatureStoreError):
    """Registry, offline store and online store do not belong together, or one was restored to another moment."""


class MaterializationError(FeatureStoreError):
    """A materialization run failed; running it again is safe."""


class ExpectationError(MaterializationError):
    """The rows of a run are not as expected, and the view says to block them: nothing was committed."""


class LeaseHeldError(MaterializationError):
    """Another run of the same view is under way."""


class EngineError(FeatureStoreError):
    """The engine failed on well-formed input, for example for lack of memory."""


class DiskFullError(FeatureStoreError):
    """No space is left where the product writes; what was there before is still readable."""


NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the operating system says of a disk that is full, or of a quota or limit that is reached."""


class OfflineStoreError(FeatureStoreError):
    """The offline store failed."""


class ConcurrentCommitError(OfflineStoreError):
    """Another writer committed to the table first."""


class DamagedFileError(OfflineStoreError):
    """A file of the offline store is missing or its hash is not the committed one."""


class TableVersionError(OfflineStoreError):
    """A pinned table version cannot be read any more."""


class OnlineStoreError(FeatureStoreError):
    """The online store failed."""


class OnlineStoreUnavailableError(OnlineStoreError):
    """The online store is down, hung or refuses connections."""


class OnlineNodeUnavailableError(OnlineStoreUnavailableError):
    """One node of a cluster does not answer; what the others hold can be read."""


class OnlineStoreFullError(OnlineStoreError):
    """The online store has no room for the write."""


class DamagedRecordError(OnlineStoreError):
    """An online record's checksum or format is wrong."""


class TrainingSetError(FeatureStoreError):
    """A training set cannot be built, saved or built again."""


class CertificateError(TrainingSetError):
    """A certificate does not hold: a chosen row lies in the future or an independent check disagrees."""


class TrainingSetChangedError(TrainingSetError):
    """A saved training set does not build to the same rows any more."""


class CodeMismatchError(TrainingSetError):
    """The code of an on-demand feature view differs from what was applied."""


class ModelError(FeatureStoreError):
    """A model was trained with other features than those that would be served, or nothing says with which."""


class TrackerError(FeatureStoreError):
    """The tracker of experiments, MLflow, is not installed, failed, or cannot be reached."""


class ServerError(FeatureStoreError):
    """A feature server failed, or the server that answers is not a feature server."""


class ServerUnavailableError(ServerError):
    """The feature server cannot be reached, is overloaded, or did not answer in time."""
