"""Fuzzing: a target for each parser, a corpus for each target, and a way to run them."""
