"""
Rules of nftables by which packets vanish that arrive at an interface for some network.

Each has a table of its own, C{udptunnel-l3-NETWORK}, with C{-} for the C{:} of IPv6, which a name may not hold. So
whoever looks at C{nft list ruleset} sees whose it is, and the next start finds what a killed process has left.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

_PREFIX, _CHAIN = "udptunnel-l3-", "arriving"
_BY_HAND = "udptunnel-by-hand-"
"""What the name of a table begins with that somebody else makes: nobody but him takes that away."""

PRIORITY = -300
"""NF_IP_PRI_RAW of linux/netfilter_ipv4.h: before connections are tracked."""

_INET, _ACCEPT = 1, 1
_META_IIFNAME, _META_NFPROTO = 6, 15
_FROM_NETWORK_HEADER, _EQUAL = 1, 0
_DROP = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", 0)]})]}
"""From linux/netfilter.h and linux/netfilter/nf_tables.h."""

_NAME_BYTES = 16
"""IFNAMSIZ of linux/if.h."""

_PROTOCOL_AND_PLACE = {4: (b"\x02", 16), 6: (b"\x0a", 24)}
"""NFPROTO_IPV4 and NFPROTO_IPV6, and where a destination stands."""


class Discards(Protocol):
    """Networks for which arriving packets vanish. All calls may raise C{OSError}."""

    def add(self, network: str, interface: str) -> None:
        """Have vanish what arrives at an interface for a network."""

    def remove(self, network: str) -> None:
        """Have it vanish no longer."""

    def networks(self) -> list[str]:
        """Those for which something vanishes. Ask this first: who may not change anything is told here."""


class LinuxDiscards:
    """Linux, by way of pyroute2, which is looked for only when it is needed."""

    def add(self, network: str, interface: str) -> None:
        """Have vanish what arrives at an interface for a network."""
        table = _nameOf(network)
        with _opened() as nft:
            nft.table("add", name=table)
            hook = {"type": "filter", "hook": "prerouting", "priority": PRIORITY, "policy": _ACCEPT}
            nft.chain("add", table=table, name=_CHAIN, **hook)
            nft.rule("add", table=table, chain=_CHAIN, expressions=(tuple(_expressions(network, interface)),))

    def remove(self, network: str) -> None:
        """Have it vanish no longer."""
        with _opened() as nft:
            nft.table("del", name=_nameOf(network))

    def networks(self) -> list[str]:
        """Those for which something vanishes."""
        with _opened() as nft:
            names = [str(table.get_attr("NFTA_TABLE_NAME")) for table in nft.get_tables()]
        return [name[len(_PREFIX) :].replace("-", ":") for name in names if name.startswith(_PREFIX)]


def command(network: str, interface: str) -> str:
    """What somebody must type who adds it by hand."""
    table, version = f"inet {_nameOf(network, _BY_HAND)}", "ip6" if ":" in network else "ip"
    return (
        f"nft 'add table {table}; "
        f"add chain {table} {_CHAIN} {{ type filter hook prerouting priority {PRIORITY}; }}; "
        f'add rule {table} {_CHAIN} iifname "{interface}" {version} daddr {network} drop\''
    )


def _nameOf(network: str, prefix: str = _PREFIX) -> str:
    return prefix + network.replace(":", "-")


def _expressions(network: str, interface: str) -> Iterator[Any]:
    wanted = ipaddress.ip_network(network)
    protocol, place = _PROTOCOL_AND_PLACE[wanted.version]
    begins = wanted.network_address.packed
    yield _do("meta", key=_META_IIFNAME, dreg=1)
    yield _do("cmp", sreg=1, op=_EQUAL, data=_data(os.fsencode(interface).ljust(_NAME_BYTES, b"\0")))
    yield _do("meta", key=_META_NFPROTO, dreg=1)
    yield _do("cmp", sreg=1, op=_EQUAL, data=_data(protocol))
    yield _do("payload", dreg=1, base=_FROM_NETWORK_HEADER, offset=place, len=len(begins))
    mask = _data(wanted.netmask.packed)
    yield _do("bitwise", sreg=1, dreg=1, len=len(begins), mask=mask, xor=_data(bytes(len(begins))))
    yield _do("cmp", sreg=1, op=_EQUAL, data=_data(begins))
    yield _do("immediate", dreg=0, data=_DROP)


def _do(name: str, **attributes: Any) -> Any:
    """An expression of nftables, with its attributes as linux/netfilter/nf_tables.h calls them."""
    from pyroute2.nftables.expressions import genex

    return genex(name, attributes)


def _data(value: bytes) -> Any:
    return {"attrs": [("NFTA_DATA_VALUE", value)]}


@contextmanager
def _opened() -> Iterator[Any]:
    """A netlink socket, whose errors are system errors."""
    try:
        from pyroute2.netlink.exceptions import NetlinkError
        from pyroute2.nftables.main import NFTables
    except ImportError as error:
        raise OSError(errno.ENOSYS, f"rules of nftables need pyroute2: {error}") from error
    try:
        with NFTables(nfgen_family=_INET) as nft:
            yield nft
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error
