"""Re-ranking of the items that were shown on a user's day, beside LambdaMART and popularity.

Takes a data folder with impressions. Gives sessions with their candidates, features as of the session's start and as of
its page, and the metrics of each ranker.
"""
