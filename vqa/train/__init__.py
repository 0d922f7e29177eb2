"""One fit: what it does (`plan`), how (`fit`), by which loss, and how it goes on after an interruption.

May import tracking and what lies below. Begin with `plan`, then `fit`.
"""
