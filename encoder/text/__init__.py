"""Item texts become text vectors and tags, by MiniLM in this process or by paid endpoints.

Fixes an item's canonical text and its hash. Remembers every vector and every paid answer on disk, and keeps rate and
spend limits.
"""
