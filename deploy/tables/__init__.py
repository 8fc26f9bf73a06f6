"""Tables of any shop become a data folder, by a map that says what their columns mean.

Reads CSV, JSON lines and Parquet, and says what was left out and why. Public data sets are maps too (`presets`).
"""
