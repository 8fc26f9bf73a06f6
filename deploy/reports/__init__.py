"""Makes one HTML page of a measurement's JSON result, with tables, charts and the facts of the run."""
