"""What feature servers answered, as they keep it: its form, its files, reading and forgetting it."""
