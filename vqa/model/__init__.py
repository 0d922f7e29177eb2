"""From a `Question` to the probabilities of its letters: base model, adapter, prompt, packed rows, decoder.

`kernels` is our own arithmetic, `vision` makes features of pictures; kernels know nothing of vision, and both
know nothing of the modules here. May import machine, config and data. Begin with `encode`, `packing`,
`forward`, `decoder`.
"""
