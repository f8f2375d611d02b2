"""
Access rules, compared with a slow and simple reading of the same rules.

The reading here asks C{ipaddress} whether an address is in a network, one
network after the other, and finds the IPv4 addresses that an IPv6 address
carries by looking at its digits.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from udptunnel.core.acl import DENIED_NETWORKS, DENIED_PORTS, AccessRules, addressesIn, normalName
from udptunnel.errors import AccessRuleError, AddressError
from udptunnel.wire.address import Address, parseHost

Ip = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_BUILT_IN = [ip_network(text) for text in DENIED_NETWORKS]
_MAPPED = IPv6Network("::ffff:0:0/96")


# -- rules


def accessRules(data: bytes) -> None:
    """
    Rules decide as a slow reading of them does: lines C{+NETWORK}, C{-NETWORK} and C{HOST PORT}.
    """
    lines = data.decode("utf-8", "replace").split("\n")
    allow, deny = ([line[1:] for line in lines if line.startswith(sign)] for sign in "+-")
    try:
        rules = AccessRules(allow, deny)
    except AccessRuleError as error:
        assert str(error) and not all(map(_isNetwork, allow + deny)), f"refused: {error}"
        return
    slow = [(_network(text), True) for text in allow] + [(_network(text), False) for text in deny]
    for line in lines:
        host, _, port = line.rpartition(" ")
        if port.isascii() and port.isdigit() and len(port) < 7:
            _compare(rules, slow, Address(host, int(port)))


def _compare(rules: AccessRules, slow: list[tuple[Network, bool]], address: Address) -> None:
    for own in (False, True):
        allowed, expected = rules.allows(address, own), _allows(slow, address, own)
        assert allowed == expected, f"{address}, own {own}: {allowed}, but {expected} read slowly"


def _isNetwork(text: str) -> bool:
    try:
        _network(text)
    except ValueError:
        return False
    return True


def _network(text: str) -> Network:
    """A network; one of IPv4-mapped addresses is the IPv4 network in it."""
    host, slash, digits = text.partition("/")
    if slash and (not digits.isascii() or not digits.isdigit() or digits != str(int(digits))):
        raise ValueError(text)
    if "%" in host:
        raise ValueError(text)
    ip_address(host)
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    if isinstance(network, IPv6Network) and network.network_address in _MAPPED:
        raise ValueError(text)
    return network


def _allows(rules: list[tuple[Network, bool]], address: Address, own: bool) -> bool:
    if not 0 < address.port < 65536 or address.port in DENIED_PORTS:
        return False
    ip = _literal(address.host)
    return ip is not None and all(_allowsIp(rules, each, own) for each in _carriedBy(ip))


def _allowsIp(rules: list[tuple[Network, bool]], ip: Ip, own: bool) -> bool:
    verdicts = [(network.prefixlen, not allowed) for network, allowed in rules if ip in network]
    if verdicts:
        return not max(verdicts)[1]
    return not own and not any(ip in network for network in _BUILT_IN)


def _literal(host: str) -> Ip | None:
    """The number behind a host, without its zone."""
    number, percent, zone = host.partition("%")
    if percent and (":" not in number or not zone or any(not "!" <= char <= "~" or char in "[]:%/" for char in zone)):
        return None
    try:
        ip = ip_address(number)
    except ValueError:
        return None
    return (ip.ipv4_mapped or ip) if isinstance(ip, IPv6Address) else ip


# -- what an address carries


def accessAddress(data: bytes) -> None:
    """An address of 16 bytes carries the IPv4 addresses that its digits show, and is judged alike in any spelling."""
    ip = IPv6Address(data[:16].ljust(16, b"\0"))
    found = addressesIn(str(ip))
    expected = list(_carriedBy(ip.ipv4_mapped or ip))
    assert set(found) == set(expected), f"{found}, but {expected} by its digits"
    rules = AccessRules()
    for text in (str(ip), ip.exploded, ip.exploded.upper(), f"{ip}%1"):
        assert rules.allows(Address(text, 443)) == rules.allows(Address(str(ip), 443)), text
    if any(IPv4Address(each) in network for each in found if each.version == 4 for network in _BUILT_IN[:16]):
        assert not rules.allows(Address(str(ip), 443))


def _carriedBy(ip: Ip) -> Iterator[Ip]:
    yield ip
    if isinstance(ip, IPv6Address):
        for digits in _carriedDigits(ip.exploded.replace(":", "")):
            yield IPv4Address(int(digits, 16))


def _carriedDigits(digits: str) -> Iterator[str]:
    """The hexadecimal digits of IPv4 addresses among the 32 of an IPv6 address."""
    if digits[:24] == "0" * 24 and digits[24:] not in ("00000000", "00000001"):
        yield digits[24:]
    if digits[:24] in ("0" * 16 + "ffff0000", "0064ff9b" + "0" * 16) or digits[16:24] in ("00005efe", "02005efe"):
        yield digits[24:]
    if digits[:4] == "2002":
        yield digits[4:12]
    if digits[:8] == "20010000":
        yield digits[8:16]
        yield f"{int(digits[24:], 16) ^ 0xFFFFFFFF:08x}"
    if digits[:12] == "0064ff9b0001":
        yield from _translated(digits)


def _translated(digits: str) -> Iterator[str]:
    """RFC 6052 section 2.2 for prefixes of 48, 56, 64 and 96 bits. With the first three the rest is zero."""
    short = []
    if digits[16:18] == "00":
        for found, rest in (
            (digits[12:16] + digits[18:22], digits[22:]),
            (digits[14:16] + digits[18:24], digits[24:]),
            (digits[18:26], digits[26:]),
        ):
            if not rest.strip("0"):
                short.append(found)
    yield from short
    if digits[24:].strip("0") or not short:
        yield digits[24:]


# -- names


def accessName(data: bytes) -> None:
    """A name is written in one way; what a C library takes for a number is none."""
    text = data.decode("utf-8", "surrogateescape")
    try:
        normal = normalName(text)
    except AddressError:
        return
    assert normalName(normal) == normalName(text.upper()) == normal
    assert parseHost(normal) is None and not addressesIn(normal)
    assert not AccessRules(["0.0.0.0/0", "::/0"]).allows(Address(normal, 443))
    labels = normal.split(".")
    assert not all(label.isdigit() for label in labels), "a number in decimal"
    assert not all(label.startswith("0x") and _isHex(label[2:]) for label in labels), "a number in hexadecimal"


def _isHex(text: str) -> bool:
    return all(char in "0123456789abcdef" for char in text)
