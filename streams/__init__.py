"""The way from Kafka records to the live state, and everything that reads history again.

Takes the eight topics or a data folder. Gives one atomic write per batch, exports, replays and offline metrics. Owns
Faust, aiokafka and LightGBM.
"""
