"""Kafka in: events, state, pipeline, transport, replay and evaluation."""
