"""The files and scores that a run leaves: its folder, predictions, metrics, the manifest, the trials' table.

May import machine, config, data and model. Begin with `folder`, then `predictions` and `metrics`.
"""
