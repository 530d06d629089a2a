"""sidecar beside its peers: side by side in one run, as ratios (docs/reference/benchmarks.md).

Not part of the tests, and not installed: run from a checkout, `python -m benchmarks tcp`.
"""
