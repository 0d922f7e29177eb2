"""What is measured by hand, in rooms: speed, search, shifts, endurance, and the harness they share.

Every module that measures something is a command, `python -m benchmarks.<room>.<name>`, and writes one JSON
file into `results/`. Nothing in `vqa` imports this package. Begin with `harness.record`, then
`speed.throughput`.
"""
