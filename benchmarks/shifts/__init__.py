"""What test-time adaptation and read-outs gain on pictures that differ from the training pictures.

`adaptation` trains the adapters and runs every method, `readouts` every read-out. `rows` chooses the
questions, `corruptions` changes their pictures, `table` tests the gains. Begin with `adaptation`. May import
harness.
"""
