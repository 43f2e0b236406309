"""Exit codes of `fs`, as its help and docs/reference/cli.md list them."""

EXIT_FAILED, EXIT_USAGE, EXIT_PENDING, EXIT_CONFLICT, EXIT_WAITING = 1, 2, 3, 4, 5
