"""The live state in Redis or in memory, behind one interface with leases, guarded writes and an item log.

Takes operations under a token and positions, and applies them atomically or refuses them. Holds the record formats, all
Redis keys and the routing to the nodes of a cluster.
"""
