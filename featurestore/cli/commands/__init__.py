"""One module a command; each calls one use case."""
