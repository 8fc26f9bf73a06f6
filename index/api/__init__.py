"""The HTTP API with recommendations, lookups, posted records, status, health and metrics.

Takes a store, settings and three injected Kafka functions. Gives an ASGI application with API keys, admission control
and problem documents. Every answer says how old its knowledge is.
"""
