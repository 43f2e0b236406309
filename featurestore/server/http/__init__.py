"""HTTP: connections, bodies, errors, and who may pass."""
