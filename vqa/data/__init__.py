"""From files to `Question`s, and from those to who learns, who is held out and who is in which fold.

May import machine and config. Begin with `source`, then one of the datasets, then `split`.
"""
