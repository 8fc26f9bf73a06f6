"""Ranking of one request, from user vectors, context and popularity to a list.

Takes a user's live state, a catalogue and the moment. Gives items with the parts of their scores. The API, replay and
prequential evaluation call the same function.
"""
