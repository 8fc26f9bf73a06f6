"""Re-ranks what was shown on a user's day. Takes a data folder with impressions and a model, and gives metrics beside
LambdaMART."""
