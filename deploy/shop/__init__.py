"""Generates a shop whose causes are known, with a history, live traffic and the truth behind both."""
