"""The player of a generated shop or of a data folder, which sends records no faster than they are applied.

Takes a plan that the local deployment writes. Gives catalogue, histories and live events on Kafka, and publishes the
timeline's clock.
"""
