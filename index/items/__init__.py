"""The catalogue of one process, with filters, hard rules and nearest-neighbour search.

Follows the item log of the live state, from a snapshot on disk where there is one. Gives masks of the items that may be
shown, and the nearest of them to a vector by scan or HNSW graph.
"""
