"""Reports of measurements as single HTML files with tables, charts and the facts of the run.

Takes the JSON that a measuring command prints. Gives a page that asks nothing of any network.
"""
