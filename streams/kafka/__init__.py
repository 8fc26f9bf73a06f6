"""The Kafka side of the worker, with batched consumption, partition leases and readers of whole topics.

Takes a cluster's address and credentials. Gives micro-batches that start where the live state says, and topics merged
by time for replay and export. All Kafka consumers of the project are here.
"""
