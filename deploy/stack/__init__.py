"""Keeps real Kafka, Redis and Elasticsearch running on one machine for `perseid stack`."""
