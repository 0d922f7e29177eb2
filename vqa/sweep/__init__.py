"""Many trials, many workers: one Optuna study of Hydra jobs, pruned early, resumable at any instant.

May import report and what lies below. Begin with `sweep`, then `study` and `worker`.
"""
