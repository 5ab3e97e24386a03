"""Dynamic programming over weighted automata in pure JAX; knows nothing of Sprint."""
