"""Training fits encoder, item tower and context offset, and chooses the list that is served by default.

Takes columns of events and item vectors. Gives an artefact with metrics of the held-out end. A run can be resumed from
its checkpoint.
"""
