"""Rows that callers push: checked, committed in groups, and written online."""

from featurestore.ingest.push import PushResult, push

__all__ = ["PushResult", "push"]
