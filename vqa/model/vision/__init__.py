"""From pictures to vision features, once: views, the tower, its kernels, the caches in memory and on disk.

May import kernels, and what the model may. Begin with `cache`, then `tower`.
"""
