"""The engine applies validated events to the live state, one atomic write for each partition and topic.

Takes batches of records and a store. Gives user windows, item records, contexts, popularity and positions, and sends
refused or misrouted records on. The worker, replay and the tests use the same engine. It knows no Kafka client.
"""
