"""Incremental inference encodes a new event as one row over cached keys and values.

Takes requests that carry a whole window and how much of it is unchanged. Gives the same vectors as a whole-window
encoding, in batches, on CPU or CUDA. Holds the paged KV cache and the item table.
"""
