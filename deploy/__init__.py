"""Composes and starts processes from settings; holds the commands, the roles and the local stack."""
