"""Tests with real programs, in network namespaces of their own; they need root."""
