"""Holds what every process needs, such as logging, heartbeats, the producer and the sizes of the live state."""
