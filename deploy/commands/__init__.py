"""The subcommands of `perseid`, with their options, progress and output.

Each parses its options, calls one job, role or server, and prints the result. The work is done elsewhere.
"""
