"""A whole deployment on one machine, started and watched by one process.

Prepares data and model, starts the servers that the environment does not name and all roles, and shows a status
line.
"""
