"""Tests for L{udptunnel.core.acl}."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.core import acl_matrix
from tests.examples import EXAMPLES
from udptunnel.core.acl import DENIED_NETWORKS, DENIED_PORTS, AccessRules, addressesIn, normalName
from udptunnel.errors import AccessRuleError, AddressError
from udptunnel.wire.address import Address

ROOT = Path(__file__).parents[2]

thorough = settings(max_examples=EXAMPLES, deadline=None)

ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)


@st.composite
def networks(draw: st.DrawFn) -> str:
    """Networks that have a fair chance to cover one another."""
    length = draw(st.integers(0, 32))
    number = draw(st.sampled_from([0x0A000000, 0x0A0A0A0A, 0x08080808, 0xFFFFFFFF]))
    return f"{IPv4Address(number >> 32 - length << 32 - length)}/{length}"


def allows(host: str, rules: AccessRules = AccessRules()) -> bool:  # noqa: B008 - they do not change
    return rules.allows(Address(host, 53))


class MatrixTests(SynchronousTestCase):
    """The whole table, by this Python and by the others that are here."""

    def test_table(self) -> None:
        """Each address and each name of the table is judged as the table says."""
        right = acl_matrix.expected()
        wrong = {question: verdict for question, verdict in acl_matrix.verdicts().items() if verdict != right[question]}
        self.assertEqual(wrong, {})

    def test_tableIsWhole(self) -> None:
        """The table asks no question twice, and both answers occur often."""
        right = list(acl_matrix.expected().values())
        self.assertEqual(len(right), len(acl_matrix.CASES) + len(acl_matrix.NAMES))
        self.assertGreater(right.count(True), 500)
        self.assertGreater(right.count(False), 1000)

    def test_everyNetworkIsInTheTable(self) -> None:
        """The table asks for the first and the last address of every network that is denied by default."""
        asked = {each for host in acl_matrix.DENIED_IPV4 + acl_matrix.DENIED_IPV6 for each in addressesIn(host)}
        for network in map(ip_network, DENIED_NETWORKS):
            self.assertIn(network[0], asked)
            self.assertIn(network[-1], asked)

    def test_everyPortIsInTheTable(self) -> None:
        """The table asks for every port that is denied by default."""
        asked = {case.port for case in acl_matrix.PORTS if not case.expected}
        self.assertTrue(DENIED_PORTS <= asked)
        self.assertEqual(DENIED_PORTS, {0, 19, 25, 389, 1900, 11211})

    def test_everyPythonAgrees(self) -> None:
        """Other versions of Python say the same, with nothing but their standard library."""
        found = interpreters()
        self.assertIn(sys.version_info[:2], found)
        for version, path in found.items():
            printed = run(path, "-m", "tests.core.acl_matrix")
            self.assertEqual(printed.returncode, 0, printed.stderr)
            self.assertEqual(json.loads(printed.stdout), acl_matrix.expected(), f"Python {version}")


def interpreters() -> dict[tuple[int, ...], str]:
    """A Python of each version that we support and find, this one included."""
    found: dict[tuple[int, ...], str] = {}
    for path in (sys.executable, *candidates()):
        printed = run(path, "-c", "import sys; print(*sys.version_info[:2])")
        # A shim of pyenv is there even if what it stands for is not.
        if printed.returncode == 0:
            found.setdefault(tuple(map(int, printed.stdout.split())), path)
    return found


def candidates() -> Iterator[str]:
    yield from filter(None, (shutil.which(f"python3.{minor}") for minor in range(11, 15)))
    yield from map(str, Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python"))


def run(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S leaves site-packages out, and with them Twisted; where to look for modules is not the same for every version.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [path, "-S", "-B", *arguments], cwd=ROOT, env=own, capture_output=True, text=True, timeout=120
    )


class AccessRulesTests(SynchronousTestCase):
    """L{AccessRules} beyond the table."""

    def test_malformed(self) -> None:
        """A rule that is no network is refused, with its text and what is expected, wherever it stands."""
        for text in (
            *("", "x", "localhost", "10/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/-1", "10.0.0.0/08", "10.0.0.0/8/8"),
            *("10.0.0.1/8", "10.0.0.0/255.0.0.0", "10.0.0.0/0.255.255.255", " 10.0.0.0/8", "10.0.0.0/8 ", "127.1/32"),
            *("::/129", "::1/64", "fe80::%eth0/10", "[::1]", "::ffff:0:0/95", "::ffff:10.0.0.1/104", "\u0661.0.0.0/8"),
        ):
            for arguments in ({"allow": [text]}, {"deny": ["10.0.0.0/8", text]}):
                refusal = self.assertRaises(AccessRuleError, AccessRules, **arguments)
                self.assertIn(repr(text), str(refusal))
                self.assertIn("expected", str(refusal))

    def test_textInsteadOfList(self) -> None:
        """One text instead of a list of them is refused, and does not silently mean something else."""
        self.assertRaises(AccessRuleError, AccessRules, "10.0.0.0/8")

    def test_mappedRuleNetworks(self) -> None:
        """An IPv4-mapped network is the IPv4 network whose length is 96 less."""
        self.assertTrue(allows("10.255.0.1", AccessRules(allow=["::ffff:10.0.0.0/104"])))
        self.assertFalse(allows("11.0.0.1", AccessRules(deny=["::ffff:0:0/96"])))

    @thorough
    @given(ipv4)
    def test_carriersAreJudgedByWhatTheyCarry(self, ip: IPv4Address) -> None:
        """An IPv6 address that carries an IPv4 address is allowed only if that one is."""
        for host in acl_matrix.carriers(str(ip)):
            self.assertEqual(allows(host), allows(str(ip)), host)

    @thorough
    @given(ipv4 | st.sampled_from([IPv4Address("10.0.0.0"), IPv4Address("10.10.10.10")]), st.data())
    def test_longestPrefixDecides(self, ip: IPv4Address, data: st.DataObject) -> None:
        """Among explicit rules the longest that covers the address decides, and deny wins a tie, in any order."""
        allow, deny = data.draw(st.lists(networks(), max_size=6)), data.draw(st.lists(networks(), max_size=6))
        covering = [
            (network.prefixlen, not allowed)
            for allowed, texts in ((True, allow), (False, deny))
            for network in map(ip_network, texts)
            if ip in network
        ]
        verdict = not max(covering)[1] if covering else allows(str(ip))
        self.assertEqual(allows(str(ip), AccessRules(allow, deny)), verdict)
        self.assertEqual(allows(str(ip), AccessRules(allow[::-1], deny[::-1])), verdict)

    @thorough
    @given(ipv4 | ipv6)
    def test_builtInNetworks(self, ip: IPv4Address | IPv6Address) -> None:
        """An address in a network that is denied by default is denied, however it is written."""
        covered = any(ip in network for network in map(ip_network, DENIED_NETWORKS))
        for host in (str(ip), ip.exploded, ip.exploded.upper()):
            self.assertFalse(covered and allows(host))

    @thorough
    @given(st.text(alphabet="0123456789abcdefx.:%[]/ -\0", max_size=45) | st.text(), st.integers(), st.booleans())
    def test_garbage(self, host: str, port: int, own: bool) -> None:
        """A host that is no literal is not allowed, and raises nothing."""
        verdict = AccessRules(acl_matrix.EVERYTHING).allows(Address(host, port), own)
        self.assertFalse(verdict and Address(host, port).isName)


class AddressesInTests(SynchronousTestCase):
    """L{addressesIn}."""

    def test_carried(self) -> None:
        """The address itself comes first, without its zone; then the IPv4 addresses that it carries."""
        for host, found in {
            "8.8.8.8": ["8.8.8.8"],
            "::ffff:8.8.8.8": ["8.8.8.8"],
            "2606:4700::1": ["2606:4700::1"],
            "fe80::1%eth0": ["fe80::1"],
            "::1": ["::1"],
            "::": ["::"],
            "::2": ["::2", "0.0.0.2"],
            "64:ff9b::127.0.0.1": ["64:ff9b::7f00:1", "127.0.0.1"],
            "2001:0:4136:e378:8000:63bf:3fff:fdd2": [
                *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "65.54.227.120", "192.0.2.45")  # the example of RFC 4380
            ],
            "2002:808:808::200:5efe:7f00:1": ["2002:808:808::200:5efe:7f00:1", "127.0.0.1", "8.8.8.8"],
        }.items():
            self.assertEqual(addressesIn(host), [ip_address(each) for each in found])

    def test_name(self) -> None:
        """In a name there is no address."""
        self.assertEqual(addressesIn("127.1"), [])


class NormalNameTests(SynchronousTestCase):
    """L{normalName} beyond the table."""

    def test_refusal(self) -> None:
        """A refusal quotes the name so that it stays on one line."""
        self.assertIn(r"'a\nb'", str(self.assertRaises(AddressError, normalName, "a\nb")))
        self.assertIn("'127.1'", str(self.assertRaises(AddressError, normalName, "127.1")))

    @thorough
    @given(
        st.text(alphabet="aZ09xX.-_\0[%\u3002", max_size=20) | st.text() | st.from_regex(r"[a-z0-9-]{1,70}(\.[a-z]+)*")
    )
    def test_normal(self, name: str) -> None:
        """What comes out is lower-case ASCII that comes out again as it is; all else is refused by an AddressError."""
        try:
            normal = normalName(name)
        except AddressError:
            return
        self.assertEqual(normalName(normal), normal)
        self.assertEqual(normal, name.lower().removesuffix("."))
        self.assertTrue(normal.isascii() and normal.isprintable() and normal)
