"""The life of a model in running processes, and what it knows; each file starts its own."""
