"""From letter probabilities to answers: ways of reading an answer off, debiasing, generated text.

`adapt` holds the test-time methods; they know nothing of the modules here. May import train and what lies
below. Begin with `score`, then `readout`.
"""
