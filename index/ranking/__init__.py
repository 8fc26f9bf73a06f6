"""Second-stage ranking of a list, with features of the live state and a small network in numpy, or compiled.

Takes a pool of items with first-stage scores and what is known of the user. Gives a score for each item.
"""
