"""Data folders on disk, which hold a shop's events, items, impressions, contexts and profiles.

Reads and writes them, turns one into topic records or training columns, and exports Kafka topics into one.
"""
