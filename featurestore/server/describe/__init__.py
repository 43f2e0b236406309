"""How the server describes itself."""
