"""Training of the second-stage ranker, on arrays of features.

Takes lists of items with what was chosen of them. Gives the layers of a small network.
"""
