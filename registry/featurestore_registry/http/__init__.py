"""A registry over HTTP: a server that wraps any registry, and a client that is one."""
