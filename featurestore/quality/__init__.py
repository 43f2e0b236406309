"""Whether what was served is what it should have been, and why not."""
