"""Names lengths of time in milliseconds, for every package but `encoder`, which has its own."""

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
WEEK_MS = 7 * DAY_MS
