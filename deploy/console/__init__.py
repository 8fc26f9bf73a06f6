"""The web page of a deployment, a role of its own that asks the public API and reads Kafka without a group."""
