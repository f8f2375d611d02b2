"""
Access: which targets datagrams may be sent to.

A relay can be used to reach what only its own machine can reach, so private and
special networks are denied unless somebody asks for them. An address is judged
as a number, never as a text, and together with each IPv4 address that it
carries: a translator or a tunnel on the way may unwrap it.

The networks are listed here and not taken from the flags of C{ipaddress}, for
those differ between versions of Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from udptunnel.errors import AccessRuleError, AddressError
from udptunnel.wire.address import LARGEST_PORT, Address, IpAddress, parseHost

DENIED_NETWORKS = (
    "0.0.0.0/8",  # this network (RFC 791); 0.0.0.0 reaches the machine itself
    "10.0.0.0/8",  # private (RFC 1918)
    "100.64.0.0/10",  # shared by carriers (RFC 6598); Alibaba's metadata is 100.100.100.200
    "127.0.0.0/8",  # loopback
    "168.63.129.16/32",  # Azure's metadata and health service, on a public address
    "169.254.0.0/16",  # link-local (RFC 3927); metadata of most clouds
    "172.16.0.0/12",  # private (RFC 1918)
    "192.0.0.0/24",  # protocol assignments (RFC 6890); Oracle's metadata is 192.0.0.192
    "192.0.2.0/24",  # documentation (RFC 5737)
    "192.88.99.0/24",  # 6to4 relays (RFC 7526)
    "192.168.0.0/16",  # private (RFC 1918)
    "198.18.0.0/15",  # benchmarks (RFC 2544)
    "198.51.100.0/24",  # documentation (RFC 5737)
    "203.0.113.0/24",  # documentation (RFC 5737)
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and the limited broadcast
    "::/128",  # unspecified; reaches the machine itself
    "::1/128",  # loopback
    "64:ff9b:1::/48",  # NAT64 for local use (RFC 8215): leads into the operator's own network
    "100::/64",  # discard (RFC 6666)
    "100:0:0:1::/64",  # dummy (RFC 9780)
    "2001:2::/48",  # benchmarks (RFC 5180)
    "2001:10::/28",  # ORCHID (RFC 4843): identifiers, not places
    "2001:db8::/32",  # documentation (RFC 3849)
    "3fff::/20",  # documentation (RFC 9637)
    "5f00::/16",  # segment routing (RFC 9602)
    "fc00::/7",  # unique local (RFC 4193); Amazon's metadata is fd00:ec2::254
    "fe80::/10",  # link-local
    "fec0::/10",  # site-local (RFC 3879)
    "ff00::/8",  # multicast
)
"""What is denied unless an explicit rule covers it."""

# Port 0 is no port. Chargen (19), CLDAP (389), SSDP (1900) and memcached (11211) answer one small datagram with a flood
# to whoever it seems to come from, and hardly anybody tunnels them; 25 is where spam goes. DNS (53) and NTP (123) can
# be abused so too, but are what people have a tunnel for.
DENIED_PORTS = frozenset({0, 19, 25, 389, 1900, 11211})
"""Ports that are denied by default."""

_LENGTH = re.compile("0|[1-9][0-9]{0,2}")

# inet_aton reads 1 to 4 parts in decimal, octal or hexadecimal; strtoul of newer C libraries also in binary.
_NUMBER = re.compile("[0-9]+|0x[0-9a-f]*|0b[01]+")
_NAME = re.compile(r"(?:(?![][:%])[!-~])*")
LARGEST_NAME, LARGEST_LABEL = 253, 63
"""Bytes of a name, and of each label in it, as text (RFC 1035 section 2.3.4)."""


class AccessRules:
    """
    Which targets are allowed.

    An explicit rule stands before L{DENIED_NETWORKS}; the longest prefix
    decides among the explicit ones, and deny wins a tie. What no rule covers is
    allowed.
    """

    def __init__(
        self, allow: Sequence[str] = (), deny: Sequence[str] = (), deniedPorts: Iterable[int] = DENIED_PORTS
    ) -> None:
        """
        @param allow: networks in CIDR notation, or single addresses.
        @param deny: the same.
        @param deniedPorts: ports that no rule opens.
        @raise AccessRuleError: a rule is no network.
        """
        self._explicit = _Networks(allow, deny)
        self._builtIn = _Networks((), DENIED_NETWORKS)
        self._deniedPorts = frozenset(deniedPorts)

    def allows(self, address: Address, own: bool = False) -> bool:
        """
        Whether datagrams may go to an address. To a name they may not: look it
        up, and ask about what was found.

        @param own: the host, or one of L{addressesIn} it, belongs to this
            machine or is the broadcast address of its network. Then it takes
            an explicit rule to allow it.
        """
        ips = addressesIn(address.host)
        return self._allowsPort(address.port) and bool(ips) and all(self._allowsIp(ip, own) for ip in ips)

    def allowsName(self, address: Address) -> bool:
        """
        Whether datagrams may go to a name that somebody else looks up: only
        the port can be judged, and names of the machine itself (RFC 6761
        section 6.3), which are judged as its loopback addresses. What a C
        library would read as a number is refused.
        """
        try:
            name = normalName(address.host)
        except AddressError:
            return False
        if name == "localhost" or name.endswith(".localhost"):
            return all(self.allows(Address(host, address.port)) for host in ("127.0.0.1", "::1"))
        return self._allowsPort(address.port)

    def _allowsPort(self, port: int) -> bool:
        return 0 < port <= LARGEST_PORT and port not in self._deniedPorts

    def _allowsIp(self, ip: IpAddress, own: bool) -> bool:
        explicit = self._explicit.verdict(ip)
        if explicit is not None:
            return explicit
        return not own and self._builtIn.verdict(ip) is None


class _Networks:
    """Networks, each with a verdict."""

    def __init__(self, allow: Iterable[str], deny: Iterable[str]) -> None:
        tables: dict[int, dict[int, dict[int, bool]]] = {4: {}, 6: {}}
        # Denied ones come last, and so win a tie.
        for allowed, texts in ((True, allow), (False, deny)):
            for network in map(_parseNetwork, texts):
                shift = network.max_prefixlen - network.prefixlen
                tables[network.version].setdefault(shift, {})[int(network.network_address) >> shift] = allowed
        # By length, the longest prefix first.
        self._tables = {version: sorted(table.items()) for version, table in tables.items()}

    def verdict(self, ip: IpAddress) -> bool | None:
        """What the longest prefix that covers an address says, or C{None}."""
        number = int(ip)
        for shift, verdicts in self._tables[ip.version]:
            allowed = verdicts.get(number >> shift)
            if allowed is not None:
                return allowed
        return None


def _parseNetwork(text: str) -> IPv4Network | IPv6Network:
    """
    Read a network. One inside C{::ffff:0:0/96} is an IPv4 network, since the
    addresses that it is compared with are unmapped too.
    """
    host, slash, digits = text.partition("/")
    ip = parseHost(host)
    if ip is None or "%" in host or (slash and not _LENGTH.fullmatch(digits)):
        raise _malformed(text)
    length = int(digits) if slash else 128 if ":" in host else 32
    try:
        if ip.version == 6:
            return IPv6Network((int(ip), length))
        return IPv4Network((int(ip), length - 96 if ":" in host else length))
    except ValueError:
        raise _malformed(text) from None


def _malformed(text: str) -> AccessRuleError:
    return AccessRuleError(
        f"{text!r} is not a network: expected an address, or CIDR such as 10.0.0.0/8 or fd00::/8"
        " with no bit set after the prefix"
    )


def addressesIn(host: str) -> list[IpAddress]:
    """
    All that must be allowed before datagrams may go to a host: the address
    itself, without its zone, and the IPv4 addresses that it carries. Nothing
    for a name.
    """
    ip = parseHost(host)
    if ip is None:
        return []
    if isinstance(ip, IPv4Address):
        return [ip]
    number = int(ip)
    return [IPv6Address(number), *(IPv4Address(each) for read in _EMBEDDINGS for each in read(number))]


def _inLastBits(number: int) -> Iterator[int]:
    """
    IPv4-compatible (RFC 4291 section 2.5.5.1), SIIT (RFC 2765 section 2.1),
    NAT64 (RFC 6052 section 2.1), and ISATAP in any network (RFC 5214 section 6.1).
    """
    # :: and ::1 are addresses of their own, and not 0.0.0.0 and 0.0.0.1.
    compatible = number >> 32 == 0 and number > 1
    if compatible or number >> 32 in (0xFFFF << 16, 0x64FF9B << 64) or number >> 32 & 0xFDFFFFFF == 0x5EFE:
        yield number & 0xFFFFFFFF


def _inSixToFour(number: int) -> Iterator[int]:
    """C{2002:a.b.c.d::/48} (RFC 3056 section 2)."""
    if number >> 112 == 0x2002:
        yield number >> 80 & 0xFFFFFFFF


def _inTeredo(number: int) -> Iterator[int]:
    """The server, and the client with all bits turned over (RFC 4380 section 4)."""
    if number >> 96 == 0x20010000:
        yield number >> 64 & 0xFFFFFFFF
        yield ~number & 0xFFFFFFFF


def _inLocalNat64(number: int) -> Iterator[int]:
    """
    C{64:ff9b:1::/48} (RFC 8215), which may be used as a prefix of 48, 56, 64 or
    96 bits: all four places where the address can be then (RFC 6052 section 2.2).
    """
    if number >> 80 != 0x64FF9B0001:
        return
    raw = number.to_bytes(16, "big")
    # With the three short prefixes byte 8 is 0 and skipped, and all after the address is 0.
    skipped = raw[:8] + raw[9:]
    short = [skipped[start : start + 4] for start in (6, 7, 8) if raw[8] == 0 and not any(skipped[start + 4 :])]
    yield from map(int.from_bytes, short)
    if any(raw[12:]) or not short:
        yield number & 0xFFFFFFFF


_EMBEDDINGS = (_inLastBits, _inSixToFour, _inTeredo, _inLocalNat64)


def normalName(name: str) -> str:
    """
    The one way to write a name, to be compared and looked up: lower case,
    without a dot at its end.

    @raise AddressError: it is no name, or one that a C library would read as a
        number, such as C{127.1} or C{0x7f000001}. Proper literals are none
        either.
    """
    normal = name.lower().removesuffix(".") if name.isascii() else ""
    labels = normal.split(".")
    if not _NAME.fullmatch(normal) or len(normal) > LARGEST_NAME or not all(map(_isLabel, labels)):
        raise AddressError(
            f"{name!r} is not a host name: expected labels of 1 to {LARGEST_LABEL} printable ASCII characters"
            f" without : % [ ], and {LARGEST_NAME} in all"
        )
    if all(map(_NUMBER.fullmatch, labels)):
        raise AddressError(f"{name!r} is a number, not a host name")
    return normal


def _isLabel(label: str) -> bool:
    return 1 <= len(label) <= LARGEST_LABEL
