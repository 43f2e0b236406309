"""The offline store: versioned tables of row versions."""
