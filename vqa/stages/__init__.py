"""One file per `stage=`: what a run does, from the pieces of the other rooms.

May import everything but `stage` and `run`. Begin with `final`, then `trial`.
"""
