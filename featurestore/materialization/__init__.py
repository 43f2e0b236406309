"""From sources into the offline log, and from there online."""

from featurestore.ledger.runs import RunResult
from featurestore.materialization.jobs import materialize, materialize_incremental, republish, succeeded

__all__ = ["RunResult", "materialize", "materialize_incremental", "republish", "succeeded"]
