"""The main functions of the role processes worker, embed, api, indexer, attribution and traffic.

Each takes settings, builds its parts, runs until SIGTERM or SIGINT, and closes them.
"""
