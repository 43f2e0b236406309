"""What an apply would do, and doing it."""
