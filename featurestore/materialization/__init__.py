"""From sources into the offline log, and from there online."""

from featurestore.materialization.jobs import materialize, materialize_incremental, republish, succeeded
from featurestore.materialization.push import PushResult, push
from featurestore.metadata.runs import RunResult

__all__ = ["PushResult", "RunResult", "materialize", "materialize_incremental", "push", "republish", "succeeded"]
