"""The registry on a SQL database: the only place that knows SQLAlchemy and Alembic."""

from featurestore_registry.sql.copying import copy_registry
from featurestore_registry.sql.registry import SqlRegistry, open_registry, upgrade_registry

__all__ = ["SqlRegistry", "copy_registry", "open_registry", "upgrade_registry"]
