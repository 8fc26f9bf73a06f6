"""Joins clicks and purchases to the lists they came from, live and exactly once."""
