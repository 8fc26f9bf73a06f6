"""The live state and its readers, from stored vectors to ranked answers over HTTP.

Takes user and item records in Redis. Gives recommendations with filters, context and the age of what they know. Owns
Redis, hnswlib, Elasticsearch and FastAPI, and loads neither torch nor Faust.
"""
