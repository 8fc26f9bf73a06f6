"""Lists of the caller's: their order, what is not known, bounds, and what a ranker sees of places and prices."""
