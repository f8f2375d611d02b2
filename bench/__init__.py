"""Benchmarks: both ends of ours beside other programs of the same kind, on one machine. C{python -m bench --help}."""
