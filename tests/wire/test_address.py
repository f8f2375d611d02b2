"""Tests for L{udptunnel.wire.address}."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6, inet_pton

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.examples import EXAMPLES
from udptunnel.errors import AddressError, TruncatedError
from udptunnel.wire.address import LARGEST_ADDRESS, Address, normalHost, packAddress, parseHost, unpackAddress

thorough = settings(max_examples=EXAMPLES, deadline=None)

LONGEST = "a" * 255

GOLDEN = {
    Address("1.2.3.4", 53): "01 01020304 0035",
    Address("0.0.0.0", 0): "01 00000000 0000",
    Address("255.255.255.255", 65535): "01 ffffffff ffff",
    Address("::1", 443): "04 00000000000000000000000000000001 01bb",
    Address("::", 0): "04 00000000000000000000000000000000 0000",
    Address("2001:db8::8:800:200c:417a", 8080): "04 20010db80000000000080800200c417a 1f90",
    Address("a.b", 1): "03 03 612e62 0001",
    Address("127.1", 53): "03 05 3132372e31 0035",
    Address(LONGEST, 65535): f"03 ff {LONGEST.encode().hex()} ffff",
}
"""Each address with its bytes, for both directions."""

TEXTS = {
    Address("1.2.3.4", 53): "1.2.3.4:53",
    Address("0.0.0.0", 0): "0.0.0.0:0",
    Address("::1", 53): "[::1]:53",
    Address("fe80::1%eth0", 65535): "[fe80::1%eth0]:65535",
    Address("name", 53): "name:53",
    Address("Name.Example.", 53): "Name.Example.:53",
    Address("127.1", 53): "127.1:53",
    Address(LONGEST, 1): f"{LONGEST}:1",
}
"""Each address with its text, for both directions."""

ports = st.integers(0, 65535)
zones = st.from_regex(r"[A-Za-z0-9._-]{1,15}", fullmatch=True)
ipv6 = st.one_of(
    st.integers(0, 2**128 - 1),
    st.lists(st.sampled_from([0, 0, 1, 0xFFFF, 0x12AB]), min_size=8, max_size=8).map(
        lambda groups: sum(group << 16 * index for index, group in enumerate(groups))
    ),
).map(IPv6Address)
literals = st.one_of(st.ip_addresses(v=4).map(str), ipv6.map(lambda ip: normalHost(str(ip))))
names = st.from_regex(r"[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,20}){0,4}", fullmatch=True)
addresses = st.builds(Address, literals | names, ports)


class AddressTests(SynchronousTestCase):
    """L{Address} and its text."""

    def test_text(self) -> None:
        """An address has one text, and that text is the address."""
        for address, text in TEXTS.items():
            self.assertEqual(str(address), text)
            self.assertEqual(Address.parse(text), address)

    def test_canonical(self) -> None:
        """A literal that is written in another way is the same address."""
        self.assertEqual(Address.parse("[0:0::0:1]:53"), Address("::1", 53))
        self.assertEqual(Address.parse("[FE80::1%Eth0]:53"), Address("fe80::1%Eth0", 53))
        self.assertEqual(Address.parse("[::ffff:1.2.3.4]:53"), Address("1.2.3.4", 53))

    def test_refused(self) -> None:
        """A text that is no address is refused, with the text and what is expected."""
        for text in (
            *(
                "",
                ":",
                ":53",
                "1.2.3.4",
                "name",
                "1.2.3.4:",
                "::1",
                "::1:53",
                "fe80::1%eth0:53",
                "a:b:53",
                "1.2.3.4:5:6",
            ),
            *(
                "[::1]",
                "[::1]:",
                "[::1:53",
                "::1]:53",
                "[]:53",
                "[:53",
                "[[::1]]:53",
                "[::1]x:53",
                "[::1%]:53",
                "[::1%a]b]:53",
            ),
            *("[1.2.3.4]:53", "[name]:53", "[::1%a b]:53", "[::1%\n]:53", "[::12345]:53", "[1::2::3]:53", "[:]:53"),
            *(
                "h:-1",
                "h:+1",
                "h: 1",
                "h:1 ",
                "h:0x35",
                "h:1_0",
                "h:053",
                "h:65536",
                "h:99999999999",
                "h:\u0661",
                "h:http",
            ),
            *("a b:53", " a:53", "a\0b:53", "a\n:53", "a\x7f:53", "b\u00fccher:53", "\u3002:53", "a" * 256 + ":53"),
            *("fe80%eth0:53", "[a:53", "a]:53"),
        ):
            refusal = str(self.assertRaises(AddressError, Address.parse, text))
            self.assertIn(repr(text), refusal)
            self.assertIn("expected HOST:PORT, an IPv6 address in brackets, a port from 0 to 65535", refusal)

    def test_tuple(self) -> None:
        """An address and the tuple that a socket uses are equal and hash alike."""
        self.assertEqual(Address("1.2.3.4", 53), ("1.2.3.4", 53))
        self.assertEqual({Address("1.2.3.4", 53): "found"}[("1.2.3.4", 53)], "found")  # type: ignore[index]

    def test_isName(self) -> None:
        """Only what must be looked up is a name: no literal in its standard form."""
        for host in ("1.2.3.4", "::1", "::FFFF:1.2.3.4", "fe80::1%eth0"):
            self.assertFalse(Address(host, 53).isName, host)
        for host in (
            "name",
            "127.1",
            "0x7f000001",
            "2130706433",
            "0177.0.0.1",
            "1.2.3.4.",
            "1.2.3.04",
            "::1%",
            "1.2.3.4%a",
        ):
            self.assertTrue(Address(host, 53).isName, host)

    @thorough
    @given(addresses)
    def test_inverse(self, address: Address) -> None:
        """To parse a text is the inverse of making one."""
        self.assertEqual(Address.parse(str(address)), address)

    @thorough
    @given(ipv6, zones, ports)
    def test_inverseWithZone(self, ip: IPv6Address, zone: str, port: int) -> None:
        """A zone is kept."""
        address = Address(f"{normalHost(str(ip))}%{zone}", port)
        assume(":" in address.host)
        self.assertEqual(Address.parse(str(address)), address)

    @thorough
    @given(st.text(alphabet="019af.:%[] \0-x", max_size=30) | st.text())
    def test_garbage(self, text: str) -> None:
        """Any text is an address whose text is the same address, or is refused by an AddressError."""
        try:
            address = Address.parse(text)
        except AddressError:
            return
        self.assertEqual(Address.parse(str(address)), address)
        self.assertEqual(unpackAddress(packAddress(address))[0].port, address.port)


class HostTests(SynchronousTestCase):
    """L{normalHost} and L{parseHost}."""

    def test_normal(self) -> None:
        """A literal has one form, the one of RFC 5952; a name stays as it is."""
        for host, normal in {
            "1.2.3.4": "1.2.3.4",
            "::FFFF:1.2.3.4": "1.2.3.4",
            "::ffff:102:304": "1.2.3.4",
            "::ffff:1.2.3.4%eth0": "1.2.3.4",
            "::1.2.3.4": "::102:304",
            "::ffff:0:1.2.3.4": "::ffff:0:102:304",
            "2001:0DB8:0:0:1:0:0:1": "2001:db8::1:0:0:1",
            "2001:db8:0:1:1:1:1:1": "2001:db8:0:1:1:1:1:1",
            "FE80::1%Eth0": "fe80::1%Eth0",
            "Name": "Name",
            "127.1": "127.1",
            "not:a:literal": "not:a:literal",
        }.items():
            self.assertEqual(normalHost(host), normal)

    @thorough
    @given(literals)
    def test_number(self, host: str) -> None:
        """The number behind a literal is the one that the kernel sees."""
        family = AF_INET6 if ":" in host else AF_INET
        ip = parseHost(host)
        assert ip is not None
        self.assertEqual(ip.packed, inet_pton(family, host))
        self.assertEqual(str(ip), host)

    @thorough
    @given(st.text(alphabet="0123456789abcdef.:%", max_size=45) | st.text())
    def test_garbage(self, host: str) -> None:
        """A text of any kind has a normal form, and that one is its own."""
        self.assertEqual(normalHost(normalHost(host)), normalHost(host))


class PackTests(SynchronousTestCase):
    """L{packAddress} and L{unpackAddress}."""

    def test_golden(self) -> None:
        """An address has the bytes that RFC 1928 section 5 says, in both directions."""
        for address, octets in GOLDEN.items():
            raw = bytes.fromhex(octets)
            self.assertEqual(packAddress(address), raw)
            for buffer in (raw, bytearray(raw), memoryview(raw)):
                self.assertEqual(unpackAddress(buffer), (address, len(raw)))
            self.assertLessEqual(len(raw), LARGEST_ADDRESS)

    def test_longest(self) -> None:
        """No address is longer than one with the longest name."""
        self.assertEqual(len(packAddress(Address(LONGEST, 1))), LARGEST_ADDRESS)

    def test_amidOthers(self) -> None:
        """An address is read from any offset, and what follows it is left alone."""
        for address, octets in GOLDEN.items():
            raw = bytes.fromhex(octets)
            self.assertEqual(unpackAddress(b"before" + raw + b"after", 6), (address, 6 + len(raw)))

    def test_cut(self) -> None:
        """An address that is cut anywhere is a TruncatedError."""
        for octets in GOLDEN.values():
            raw = bytes.fromhex(octets)
            for end in range(len(raw)):
                self.assertRaises(TruncatedError, unpackAddress, raw[:end])
                self.assertRaises(TruncatedError, unpackAddress, memoryview(b"xx" + raw[:end]), 2)

    def test_mapped(self) -> None:
        """An IPv4-mapped IPv6 address is IPv4, on the way in and on the way out."""
        mapped = bytes.fromhex("04 00000000000000000000ffff01020304 0035")
        self.assertEqual(unpackAddress(mapped), (Address("1.2.3.4", 53), 19))
        self.assertEqual(packAddress(Address("::ffff:1.2.3.4", 53)), bytes.fromhex("01 01020304 0035"))

    def test_zone(self) -> None:
        """A zone is not sent, and one that somebody sends is refused."""
        self.assertEqual(packAddress(Address("fe80::1%eth0", 53)), packAddress(Address("fe80::1", 53)))
        self.assertRaises(AddressError, unpackAddress, b"\x03\x09fe80::1%2\x00\x35")

    def test_literalAsName(self) -> None:
        """A literal that is sent as a name is a literal all the same."""
        for text, host in {b"127.0.0.1": "127.0.0.1", b"0::1": "::1", b"::ffff:127.0.0.1": "127.0.0.1"}.items():
            address, _ = unpackAddress(bytes((3, len(text))) + text + b"\x00\x35")
            self.assertEqual(address, Address(host, 53))
            self.assertFalse(address.isName)

    def test_badType(self) -> None:
        """A type that RFC 1928 does not have is an AddressError, even if nothing follows it."""
        for kind in set(range(256)) - {1, 3, 4}:
            self.assertRaises(AddressError, unpackAddress, bytes((kind,)))
            self.assertRaises(AddressError, unpackAddress, bytes((kind,)) + bytes(300))

    def test_badName(self) -> None:
        """A name that is empty, or holds anything but printable ASCII, is an AddressError."""
        self.assertRaises(AddressError, unpackAddress, b"\x03\x00")
        for name in (b"a\0b", b"\0", b"a b", b"a\n", b"\x7f", b"\x80", b"b\xc3\xbccher", b"[::1]", b"a:b", b"a%b"):
            self.assertRaises(AddressError, unpackAddress, bytes((3, len(name))) + name + b"\x00\x35")

    def test_unpackable(self) -> None:
        """What can not be written is an AddressError."""
        for host, port in (
            *(("", 53), ("a" * 256, 53), ("b\u00fccher", 53), ("a\0b", 53), ("a b", 53), ("[::1]", 53), ("a:b", 53)),
            *(("1.2.3.4", -1), ("1.2.3.4", 65536)),
        ):
            self.assertRaises(AddressError, packAddress, Address(host, port))

    @thorough
    @given(addresses, st.binary(max_size=5), st.binary(max_size=5), st.data())
    def test_inverse(self, address: Address, before: bytes, after: bytes, data: st.DataObject) -> None:
        """To unpack is the inverse of packing, wherever it stands; cut at any point it is a TruncatedError."""
        raw = packAddress(address)
        end = len(before) + len(raw)
        self.assertEqual(unpackAddress(before + raw + after, len(before)), (address, end))
        cut = data.draw(st.integers(len(before), end - 1))
        self.assertRaises(TruncatedError, unpackAddress, (before + raw)[:cut], len(before))

    @thorough
    @given(st.binary(max_size=40) | st.builds(lambda kind, rest: bytes((kind,)) + rest, st.integers(0, 5), st.binary()))
    def test_garbage(self, raw: bytes) -> None:
        """Any bytes are an address that can be packed, or are refused by the declared errors."""
        try:
            address, end = unpackAddress(raw)
        except (AddressError, TruncatedError):
            return
        self.assertLessEqual(end, len(raw))
        self.assertEqual(unpackAddress(packAddress(address))[0], address)
        self.assertEqual(Address.parse(str(address)), address)

    @thorough
    @given(st.ip_addresses(v=4), ports)
    def test_ipv4(self, ip: IPv4Address, port: int) -> None:
        """IPv4 takes seven bytes: type, address and port, the highest byte first."""
        self.assertEqual(packAddress(Address(str(ip), port)), b"\x01" + ip.packed + port.to_bytes(2, "big"))
