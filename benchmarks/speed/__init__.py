"""How fast training and answering are, how much memory they take, and whether the fast path is exact.

Most modules run models of the true size with random weights, from the files that `harness.full_size` writes,
and need a GPU. Begin with `throughput`. May import harness.
"""
