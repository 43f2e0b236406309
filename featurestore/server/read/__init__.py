"""Online reads: from a request to the store and back."""
