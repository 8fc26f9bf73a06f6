"""A generated shop with known causes, for history, live traffic and ground truth.

Takes a seed and times. Gives a data folder and an endless stream of topic records, the same bytes for the same
arguments.
"""
