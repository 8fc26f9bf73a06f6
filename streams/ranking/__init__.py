"""Training data of the second-stage ranker, from the log.

Takes records and lists that were shown. Gives features of each list as of the moment before it was shown.
"""
