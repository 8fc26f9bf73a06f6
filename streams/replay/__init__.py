"""Replay sends historical records through the worker's engine into a live state of its own.

Takes records merged by time. Gives ranking metrics of the answers that would have been served just before each event,
and a digest of the state.
"""
