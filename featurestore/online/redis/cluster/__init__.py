"""A Redis Cluster as the online store: which node owns which key, and the way there."""
