"""Parses the options of each `perseid` command, calls the job or role behind it, and prints what it gives."""
