"""What a caller asks for: features by name, resolved against the definitions."""
