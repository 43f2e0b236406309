"""Keys and records: the bytes that every online store holds. Without I/O."""
