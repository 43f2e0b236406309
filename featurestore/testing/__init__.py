"""Conformance suites, in pytest: what every implementation of an interface must pass, for authors of backends.

Subclass each suite and give it the fixture that its module names:

- An engine, ``open_engine`` (`engine_project`): `engine_sources`, `engine_source_types`, `engine_folders`,
  `engine_values`, `engine_log`, `engine_joins`, `engine_profiles`, `engine_checks`, `engine_splits`, the SQL of
  views in `engine_queries`; and as its capabilities say, `engine_dropped` and queries in `engine_queries`.
- An offline store, ``offline``: `offline_store` (with ``tamper``), `table_growth`, `table_origins`, `kept_blobs`.
- An online store, ``store``: `online_store`.
"""
