"""Exit codes of `fs`, as its help and docs/reference/cli.md list them."""

EXIT_FAILED, EXIT_USAGE, EXIT_PENDING, EXIT_CONFLICT = 1, 2, 3, 4
