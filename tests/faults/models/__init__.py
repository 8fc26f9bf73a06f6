"""The life of a model under faults: five steps, five faults, and what must be true whatever was killed."""
