"""Our own arithmetic for the decoder: attention over a tree, linear layers with LoRA, elementwise parts.

Each has its backward, tested against autograd. May import machine. Begin with `tree`, then `attention` and
`lora_linear`.
"""
