"""What a search proposes: the space, how a new trial is drawn from it, and which trial goes on.

Knows nothing of processes, files or Hydra jobs. May import `vqa.sweep.settings` and what lies below the room.
"""
