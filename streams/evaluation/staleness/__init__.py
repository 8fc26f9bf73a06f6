"""The cost of delay, measured by answering one held-out stream with parts of the state known late.

Takes a data folder, a model and delays. Gives paired differences from no delay for user, vectors, context and
popularity. The comparison of two models over the same traffic uses the same pass.
"""
