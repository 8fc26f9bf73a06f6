"""The life of a model in running processes; each file starts its own."""
