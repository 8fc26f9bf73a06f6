"""Sends a history and then live events to Kafka, no faster than they are applied."""
