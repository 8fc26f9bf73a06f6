"""Checks of an installation and of every server it depends on, each with a remedy.

Takes settings. Gives findings on Python, Kafka, Redis, Elasticsearch, models, the state folder and the API's port. It
changes nothing and ends in bounded time.
"""
