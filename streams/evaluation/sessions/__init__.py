"""Re-ranking of the items that were shown on a user's day or on one page, beside LambdaMART and popularity.

Takes a data folder with impressions. Gives what was shown and chosen, its features as of the moment of the question,
and the metrics of each ranker.
"""
