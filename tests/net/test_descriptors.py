"""Tests for L{udptunnel.net.descriptors}."""

from __future__ import annotations

import resource

from twisted.trial.unittest import SynchronousTestCase

from udptunnel.net import descriptors
from udptunnel.net.descriptors import PORTABLE_LIMIT, descriptorLimit, raiseDescriptorLimit


class DescriptorLimitTests(SynchronousTestCase):
    """How many descriptors this process may have."""

    def setUp(self) -> None:
        self.limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, self.limits)

    def test_limit(self) -> None:
        """The present limit is the system's soft limit."""
        _, hard = self.limits
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        self.assertEqual(descriptorLimit(), 200)

    def test_raise(self) -> None:
        """It can be raised up to the hard limit."""
        _, hard = self.limits
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        raiseDescriptorLimit()
        self.assertEqual(descriptorLimit(), hard)

    def test_mayNot(self) -> None:
        """Where the system does not allow that, the limit stays."""
        before = descriptorLimit()

        def refuse(*_: object) -> None:
            raise ValueError("not allowed to raise maximum limit")

        self.patch(resource, "setrlimit", refuse)
        raiseDescriptorLimit()
        self.assertEqual(descriptorLimit(), before)

    def test_otherSystems(self) -> None:
        """Where the system does not tell, a small limit is assumed."""
        self.patch(descriptors, "resource", None)
        raiseDescriptorLimit()
        self.assertEqual(descriptorLimit(), PORTABLE_LIMIT)
