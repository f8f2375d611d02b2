"""Tests for L{udptunnel.capi}."""
