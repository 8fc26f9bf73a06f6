"""Counts of what all users did, over partitions and decayed by age.

Takes the counts that workers keep in the live state. Gives popularity, counts by kind of event, and how often items
were shown of late.
"""
