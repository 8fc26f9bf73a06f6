"""Elasticsearch as an optional backend for filters and nearest-neighbour search.

The indexer writes the item log into an index. The reader answers for an API process, which falls back on its own
catalogue when Elasticsearch is slow, behind or away.
"""
