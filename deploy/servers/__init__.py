"""Kafka, Redis and Elasticsearch servers as supervised child processes, and the topics on a broker.

Holds the embedded broker and Redis, which need nothing installed, real servers from pinned artefacts, and their
supervisor. Every child dies with its parent.
"""
