"""The offline store as Delta tables in a local folder."""
