"""Starts Kafka, Redis and Elasticsearch as child processes, and makes our topics on a Kafka."""
