"""Tests for the modules of L{udptunnel.api}; those for its face are in L{tests.test_api}."""
