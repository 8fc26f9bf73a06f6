"""What every role process needs, from logs, heartbeats and signals to the Kafka producer.

Takes settings. Gives an open live state, acknowledged sends, readable logs during outages, and stack dumps on
request.
"""
