"""Features of a moment and a place, and the offset that they add to user vectors at query time.

Takes the time and a location's context record with weather, events and promotions. Gives named features and a bounded
vector. Needs numpy only and imports nothing of the project.
"""
