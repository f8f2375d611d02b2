"""
What access rules say about every odd way to write an address, as one table.

Needs nothing but the standard library, so that any Python can print its
verdicts: C{python3.12 -m tests.core.acl_matrix}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import NamedTuple

from udptunnel.core.acl import DENIED_PORTS, AccessRules, normalName
from udptunnel.errors import AddressError
from udptunnel.wire.address import Address

EVERYTHING = ("0.0.0.0/0", "::/0")


class Case(NamedTuple):
    """One question to the rules, and the right answer."""

    host: str
    expected: bool
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    port: int = 53
    own: bool = False
    deniedPorts: tuple[int, ...] = tuple(sorted(DENIED_PORTS))

    @property
    def question(self) -> str:
        return repr(tuple(self._replace(expected=True)))

    def ask(self) -> bool:
        rules = AccessRules(self.allow, self.deny, self.deniedPorts)
        return rules.allows(Address(self.host, self.port), self.own)


# -- IPv4, as it is and carried in IPv6

DENIED_IPV4 = """
    0.0.0.0 0.1.2.3 0.255.255.255
    10.0.0.0 10.1.2.3 10.255.255.255
    100.64.0.0 100.100.100.200 100.127.255.255
    127.0.0.0 127.0.0.1 127.255.1.2 127.255.255.255
    168.63.129.16
    169.254.0.0 169.254.169.254 169.254.255.255
    172.16.0.0 172.20.1.1 172.31.255.255
    192.0.0.0 192.0.0.192 192.0.0.255
    192.0.2.0 192.0.2.1 192.0.2.255
    192.88.99.0 192.88.99.1 192.88.99.255
    192.168.0.0 192.168.1.1 192.168.255.255
    198.18.0.0 198.18.0.1 198.19.255.255
    198.51.100.0 198.51.100.1 198.51.100.255
    203.0.113.0 203.0.113.1 203.0.113.255
    224.0.0.0 224.0.0.1 239.255.255.250 239.255.255.255
    240.0.0.0 240.0.0.1 255.255.255.254 255.255.255.255
""".split()

# The neighbours of the networks above, on both sides.
ALLOWED_IPV4 = """
    1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
    168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0
    191.255.255.255 192.0.1.0 192.0.1.255 192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0
    198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
    1.1.1.1 8.8.8.8 9.9.9.9
""".split()


def carriers(ipv4: str) -> Iterator[str]:
    """An IPv4 address in every form of IPv6 that carries one, where the rest of the form is allowed."""
    a, b, c, d = (int(part) for part in ipv4.split("."))
    high, low = a << 8 | b, c << 8 | d
    yield f"::ffff:{ipv4}"
    yield f"::FFFF:{high:x}:{low:x}"
    yield f"0:0:0:0:0:ffff:{high:04x}:{low:04x}"
    yield f"::ffff:{ipv4}%eth0"
    yield f"::{ipv4}"
    yield f"::ffff:0:{ipv4}"
    yield f"2002:{high:x}:{low:x}::"
    yield f"2002:{high:x}:{low:x}:1:2:3:4:5"
    yield f"64:ff9b::{high:x}:{low:x}"
    yield f"2001:0:808:808:0:0:{high ^ 0xFFFF:x}:{low ^ 0xFFFF:x}"
    yield f"2001:0:{high:x}:{low:x}:8000:63bf:f7f7:f7f7"
    yield f"2606:4700::5efe:{ipv4}"
    yield f"2606:4700::200:5efe:{ipv4}"
    yield f"2606:4700:1:2:200:5efe:{high:x}:{low:x}%1"
    yield f"2002:808:808:1:0:5efe:{high:x}:{low:x}"


def ipv4Cases() -> Iterator[Case]:
    for ipv4 in DENIED_IPV4:
        yield from (Case(host, False) for host in (ipv4, *carriers(ipv4), f"64:ff9b:1::{ipv4}"))
    for ipv4 in ALLOWED_IPV4:
        yield from (Case(host, True) for host in (ipv4, *carriers(ipv4)))
        yield from (Case(host, False, deny=(ipv4,)) for host in (ipv4, *carriers(ipv4)))
        yield Case(f"64:ff9b:1::{ipv4}", False)


# -- IPv6

DENIED_IPV6 = """
    :: ::1 0:0:0:0:0:0:0:1 ::1%lo ::%lo
    64:ff9b:1:: 64:ff9b:1::7f00:1 64:ff9b:1:ffff:ffff:ffff:ffff:ffff 64:ff9b:1:7f00:0:100::
    100:: 100::1 100::ffff:ffff:ffff:ffff 100:0:0:1:: 100:0:0:1:ffff:ffff:ffff:ffff
    2001:2:: 2001:2:0:ffff:ffff:ffff:ffff:ffff 2001:10:: 2001:1f:ffff:ffff:ffff:ffff:ffff:ffff
    2001:db8:: 2001:db8::1 2001:DB8:ffff:ffff:ffff:ffff:ffff:ffff
    3fff:: 3fff::1 3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff
    5f00:: 5f00::1 5f00:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    fc00:: fc00::1 fd00:ec2::254 fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    fe80:: fe80::1 fe80::1%eth0 fe80::1%2 fe80::5efe:8.8.8.8 febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    fec0:: fec0::1 feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    ff00:: ff02::1 ff02::1%eth0 ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 ::127.0.0.1 2002:7f00:1:: 64:ff9b::7f00:1
    2001:0:4136:e378:8000:63bf:80ff:fffe 2001:0:7f00:1:8000:63bf:f7f7:f7f7
    2606:4700::5efe:7f00:1 2606:4700::200:5efe:7f00:1
""".split()

ALLOWED_IPV6 = """
    64:ff9b:0:ffff:ffff:ffff:808:808 64:ff9b:2:: ff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    100:0:0:2:: 2001:1:ffff:ffff:ffff:ffff:ffff:ffff
    2001:2:1:: 2001:f:ffff:ffff:ffff:ffff:ffff:ffff 2001:20::
    2001:db7:ffff:ffff:ffff:ffff:ffff:ffff 2001:db9:: 3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff:1000::
    5eff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 5f01:: fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    fe00:: fe7f:ffff:ffff:ffff:ffff:ffff:ffff:ffff
    2606:4700:4700::1111 2606:4700:4700::1111%eth0 2620:fe::fe 2001:4860:4860::8888
    2606:4700::5eff:7f00:1 2606:4700::100:5efe:7f00:1 2606:4700::1:5efe:7f00:1
    2003:7f00:1:: 64:ff9b::1:7f00:1 2001:1:7f00:1:: ::1:0:7f00:1 ::fffe:0:7f00:1
""".split()


def ipv6Cases() -> Iterator[Case]:
    for host in DENIED_IPV6:
        yield Case(host, False)
    for host in ALLOWED_IPV6:
        yield Case(host, True)
        yield Case(host, False, deny=("::/0",))


# -- explicit rules

LOCAL_NAT64 = ("64:ff9b:1::/48",)

EXPLICIT = [
    Case("10.1.2.3", True, allow=("10.0.0.0/8",)),
    Case("10.1.2.3", True, allow=("10.1.2.3",)),
    Case("10.1.2.3", True, allow=("10.1.2.3/32",)),
    Case("10.1.2.4", False, allow=("10.1.2.3",)),
    Case("192.168.0.1", False, allow=("10.0.0.0/8",)),
    Case("8.8.8.8", False, deny=("8.8.8.0/24",)),
    Case("8.8.9.8", True, deny=("8.8.8.0/24",)),
    Case("8.8.8.8", False, deny=("0.0.0.0/0",)),
    Case("::1", True, allow=("::1",)),
    Case("::", True, allow=("::",)),
    Case("127.0.0.1", False, allow=("::1", "::/0")),
    Case("fd00::1", True, allow=("fd00::/8",)),
    Case("8.8.8.8", True, deny=("::/0",)),
    # The longest prefix decides.
    Case("10.1.2.3", False, allow=("10.0.0.0/8",), deny=("10.1.0.0/16",)),
    Case("10.2.2.3", True, allow=("10.0.0.0/8",), deny=("10.1.0.0/16",)),
    Case("10.1.2.3", True, allow=("10.1.2.0/24",), deny=("10.1.0.0/16",)),
    Case("8.8.8.8", True, allow=("8.8.8.8",), deny=("0.0.0.0/0",)),
    Case("fd00::1", True, allow=("fd00::1",), deny=("fd00::/64", "::/0")),
    Case("fd00::2", False, allow=("fd00::1", "fd00::/32"), deny=("fd00::/64",)),
    # Deny wins a tie.
    Case("10.1.2.3", False, allow=("10.0.0.0/8",), deny=("10.0.0.0/8",)),
    Case("10.1.2.3", False, allow=("10.1.2.3",), deny=("10.1.2.3/32",)),
    Case("fd00::1", False, allow=("fd00::/8",), deny=("fd00::/8",)),
    # Rules for IPv4-mapped addresses are rules for IPv4.
    Case("8.8.8.8", False, deny=("::ffff:8.8.8.0/120",)),
    Case("8.8.9.8", True, deny=("::ffff:8.8.8.0/120",)),
    Case("::ffff:8.8.8.8", False, deny=("::ffff:8.8.8.8",)),
    Case("8.8.8.8", False, deny=("::ffff:0:0/96",)),
    # What a zone says does not matter.
    Case("fe80::1%eth0", True, allow=("fe80::/10",)),
    Case("fe80::1%eth0", False, allow=("fe80::/10",), deny=("fe80::1",)),
    Case("2606:4700::1%eth0", False, deny=("2606:4700::1",)),
    # To allow what carries an address is not to allow what is carried.
    Case("2002:7f00:1::", False, allow=("2002::/16",)),
    Case("64:ff9b::7f00:1", False, allow=("64:ff9b::/96",)),
    Case("::127.0.0.1", False, allow=("::/0",)),
    Case("64:ff9b::a01:203", True, allow=("10.0.0.0/8",)),
    Case("2001:0:a01:203::f7f7:f7f7", True, allow=("10.0.0.0/8",)),
    Case("2001:0:a01:203::80ff:fffe", False, allow=("10.0.0.0/8",)),
    Case("64:ff9b::808:808", False, allow=("8.8.8.8",), deny=("64:ff9b::/96",)),
    # NAT64 for local use has four places where the address can be (RFC 6052 section 2.2): 10.8.8.8 and 8.8.8.8 in each.
    Case("64:ff9b:1:a08:8:800::", False, allow=LOCAL_NAT64),
    Case("64:ff9b:1:808:8:800::", True, allow=LOCAL_NAT64),
    Case("64:ff9b:1:a:8:808::", False, allow=LOCAL_NAT64),
    Case("64:ff9b:1:8:8:808::", True, allow=LOCAL_NAT64),
    Case("64:ff9b:1:0:a:808:800:0", False, allow=LOCAL_NAT64),
    Case("64:ff9b:1:0:8:808:800:0", True, allow=LOCAL_NAT64),
    Case("64:ff9b:1::a08:808", False, allow=LOCAL_NAT64),
    Case("64:ff9b:1::808:808", True, allow=LOCAL_NAT64),
    Case("64:ff9b:1:a08:108:800:808:808", True, allow=LOCAL_NAT64),
    Case("64:ff9b:1:808:108:800::", False, allow=LOCAL_NAT64),
    Case("64:ff9b:1::", False, allow=LOCAL_NAT64),
]

# -- addresses of this machine

OWN = [
    Case("8.8.8.8", False, own=True),
    Case("2606:4700::1", False, own=True),
    Case("10.0.0.255", False, own=True),
    Case("8.8.8.8", False, own=True, allow=("9.9.9.9",)),
    Case("8.8.8.8", True, own=True, allow=("8.8.8.8",)),
    Case("10.0.0.255", True, own=True, allow=("10.0.0.0/8",)),
    Case("8.8.8.8", False, own=True, allow=("8.8.8.8",), deny=("8.8.8.8",)),
    Case("2606:4700::1", True, own=True, allow=("2606:4700::/32",)),
    Case("64:ff9b::808:808", False, own=True, allow=("64:ff9b::/96",)),
    Case("64:ff9b::808:808", False, own=True, allow=("8.8.8.8",)),
    Case("64:ff9b::808:808", True, own=True, allow=("64:ff9b::/96", "8.8.8.8")),
]

# -- ports

PORTS = [
    *(
        Case("8.8.8.8", False, EVERYTHING, port=port)
        for port in (-1, 0, 19, 25, 389, 1900, 11211, 65536, 65589, 1 << 32)
    ),
    *(Case("8.8.8.8", True, port=port) for port in (1, 18, 20, 53, 123, 443, 65535)),
    *(Case("8.8.8.8", True, port=port, deniedPorts=()) for port in (19, 25, 389, 1900, 11211)),
    *(Case("8.8.8.8", False, port=port, deniedPorts=()) for port in (-1, 0, 65536)),
    Case("8.8.8.8", False, port=53, deniedPorts=(53, 123)),
]

# -- hosts that are no literals

NO_LITERALS = [
    *("localhost", "LOCALHOST.", "dns.google", "127.0.0.1.nip.io", "8.8.8.8.", "a" * 255, ""),
    *("127.1", "8.8", "134744072", "2130706433", "0x7f000001", "0x8.8.8.8", "0177.0.0.1", "010.8.8.8", "08.8.8.8"),
    *("[127.0.0.1]", "[8.8.8.8]", "[2606:4700::1]", "8.8.8.8:53", "8.8.8.8/32", "8.8.8.8%eth0", "8.8.8.8%"),
    *("8.8.8.8\0", "8.8.8.8\n", " 8.8.8.8", "8.8.8.8 ", "8.8.8.8\0.example", "+8.8.8.8", "8.8.8.-8", "8.8.8.256"),
    *("2606:4700::1\0", "2606:4700::1\n", " 2606:4700::1", "2606:4700::1/128", "2606:4700::12345", "::ffff:8.8.8"),
    *("2606:4700::1%", "2606:4700::1%a%b", "2606:4700::1%a b", "2606:4700::1%\n", "2606:4700::1%]", "::ffff:010.8.8.8"),
    *("127\u30020\u30020\u30021", "\uff18.8.8.8", "8.8.8.\u0668", "\uff12606:4700::1", ":", "1::2::3", "%", "/"),
]

ALL = [
    *ipv4Cases(),
    *ipv6Cases(),
    *EXPLICIT,
    *OWN,
    *PORTS,
    *(Case(host, False, EVERYTHING) for host in NO_LITERALS),
]

# Some are reached in two ways. A question with two answers would still be here twice.
CASES = list(dict.fromkeys(ALL))

# -- names

NAMES: dict[str, str | None] = {
    "localhost": "localhost",
    "LOCALHOST.": "localhost",
    "127.0.0.1.nip.io": "127.0.0.1.nip.io",
    "Dns.Google": "dns.google",
    "_dns.example-1.org": "_dns.example-1.org",
    "xn--bcher-kva.example": "xn--bcher-kva.example",
    "0x7g": "0x7g",
    "face": "face",
    "1.2.3.4x": "1.2.3.4x",
    "0x7f.example": "0x7f.example",
    f"{'a' * 63}.org": f"{'a' * 63}.org",
    ".".join(["a" * 49] * 5) + ".abc": ".".join(["a" * 49] * 5) + ".abc",
    ".".join(["a" * 49] * 5) + ".abc.": ".".join(["a" * 49] * 5) + ".abc",
    ".".join(["a" * 49] * 5) + ".abcd": None,
    **dict.fromkeys(
        ("127.1", "127.0.0.1", "8.8.8.8.", "0x7f000001", "0X7F.1", "2130706433", "0177.0.0.1", "0x", "0b1")
    ),
    **dict.fromkeys(("1.2.3.4.5", "0x7f.0.0x0.01", "[127.0.0.1]", "[example.com]", "example.com]", "fe80::1", "a:b")),
    **dict.fromkeys(
        ("example.com%eth0", "a\0.example", "example\n", "exam ple", "\x7f", "a\tb", "b\u00fccher.example")
    ),
    **dict.fromkeys(
        ("127\u30020\u30020\u30021", "\u2168.example", "\u212a.example", "", ".", "..", "a..b", ".a", "a..")
    ),
    **dict.fromkeys(("a" * 255, "a" * 64 + ".org", f"org.{'a' * 64}")),
}


def nameVerdict(name: str) -> str | None:
    """The normal form of a name, or L{None} if it is refused."""
    try:
        return normalName(name)
    except AddressError:
        return None


def verdicts() -> dict[str, bool | str | None]:
    """What this Python says to every question."""
    return {case.question: case.ask() for case in CASES} | {repr(name): nameVerdict(name) for name in NAMES}


def expected() -> dict[str, bool | str | None]:
    """What it should say."""
    return {case.question: case.expected for case in CASES} | {repr(name): normal for name, normal in NAMES.items()}


def main() -> None:
    """Print all verdicts as one JSON object."""
    print(json.dumps(verdicts()))


if __name__ == "__main__":
    main()
