"""Composition root: settings, commands, processes and the local stack; the only package that starts processes."""
