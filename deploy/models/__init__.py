"""The life of a model from the registry of artefacts to staging, gates, promotion, rollback and retirement."""
