"""Windows over events: what they contain at an instant, and their sums without any rounding. Without I/O."""
