"""Records of runs in MLflow, W&B or TensorBoard; everything else sees only `record`.

May import results and what lies below. Begin with `record`, then `mlflow_runs`, whose `open_tracker`
chooses the store.
"""
