"""One fit: its plan, the training loop, the losses, and checkpoints for an interrupted one.

May import tracking and what lies below. Begin with `plan`, then `fit`.
"""
