"""Real Kafka, Redis and Elasticsearch on one machine, through Docker Compose or without Docker.

Takes ports and a folder. Gives running servers on 127.0.0.1 and the settings that reach them. A keeper process holds
them without Docker.
"""
