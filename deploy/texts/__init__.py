"""Chooses who makes text vectors and tags, and remembers them."""
