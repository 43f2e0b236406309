"""Redis and Valkey as the online store."""
