"""The registry on a SQL database: the only place that knows SQLAlchemy and Alembic."""

from featurestore_registry.sql.registry import SqlRegistry, open_registry, upgrade_registry

__all__ = ["SqlRegistry", "open_registry", "upgrade_registry"]
