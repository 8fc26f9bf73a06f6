"""Runs everything on one machine for `perseid up`, with embedded servers where none are named."""
