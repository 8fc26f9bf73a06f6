"""Offline and prequential evaluation with exact metrics, baselines, intervals and paired tests.

Takes a data folder, a model and baselines. Gives ranks per question, and from them HR, NDCG, MRR and coverage, by
slice. Protocols are the global timeline, leave-one-out and sessions.
"""
