"""Statistics of views and training sets: what a catalog shows, and what drift is measured by."""

from featurestore.statistics.runs import Added, profile_run

__all__ = ["Added", "profile_run"]
