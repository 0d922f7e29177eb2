"""The computer a run uses: device, processes, files, signals, waiting, retries.

Knows nothing of questions or models and imports no other room. Begin with `device`.
"""
