"""The STARS encoder turns a user's window of events into two vectors, exactly and one event at a time.

Takes windows of items, kinds and times, item text vectors and tags. Gives user vectors and item vectors. Owns torch and
knows neither Kafka nor Redis.
"""
