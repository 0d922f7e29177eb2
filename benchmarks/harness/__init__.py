"""What the other rooms share: results on file, processes and their costs, cells run once, tests.

`full_size` writes checkpoints of the true size and a contest for them. May import no other room.
"""
