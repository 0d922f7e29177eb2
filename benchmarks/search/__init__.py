"""What a search costs and finds: samplers, pruners, learning rates, losses, the sweeper's own time.

All but `sweep` train the embedded model on a CPU. Begin with `samplers`. May import harness.
"""
