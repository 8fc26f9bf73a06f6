"""The work behind the commands that end, such as train, evaluate, replay and export.

Each takes a plan, puts together a data folder or topics, a model and a store, and gives plain values or files.
"""
