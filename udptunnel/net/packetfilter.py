"""
Classic BPF programs that pick packets by destination, for sockets of AF_PACKET (linux/filter.h).

An instruction is C{struct sock_filter}: code(2) jt(1) jf(1) k(4), in the byte order of the machine. C{jt} and C{jf} are
how many instructions are skipped if a comparison holds, or does not. What a program returns is how much of the packet
the socket gets: all of it, or nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from struct import Struct

from udptunnel.errors import ConfigError

INSTRUCTION = Struct("=HBBI")

MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS of linux/bpf_common.h."""

ETH_P_IP, ETH_P_IPV6 = 0x0800, 0x86DD
"""From linux/if_ether.h."""

_ALL, _NOTHING = 0xFFFFFFFF, 0

_LOAD, _AND, _EQUAL, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x05, 0x06
_KEEP, _FETCH = 0x07, 0x87
"""BPF_TAX and BPF_TXA: put a word aside, and take it again."""

_NETWORK = 0x100000000 - 0x100000
"""SKF_NET_OFF: places are counted from the IP header, whatever stands before it."""

_AUXILIARY = 0x100000000 - 0x1000
_PROTOCOL, _PACKET_TYPE, _VLAN_TAGGED = _AUXILIARY, _AUXILIARY + 4, _AUXILIARY + 48
"""SKF_AD_OFF: what the kernel knows of a packet besides its bytes."""

_FOR_THIS_HOST = 0
"""PACKET_HOST: neither broadcast, nor multicast, nor for somebody else, nor our own."""

_DESTINATION_V4, _DESTINATION_V6 = _NETWORK + 16, _NETWORK + 24

_Instruction = tuple[int, int, int, int]


def capturing(prefixes: Sequence[str]) -> bytes:
    """
    A program that takes packets to some networks, as far as they were sent to this host: neither those that a switch
    has flooded nor those with a VLAN tag, which belong to another interface.

    @param prefixes: ADDRESS/LENGTH of each, IPv4 or IPv6.
    @return: instructions, L{INSTRUCTION} each.
    @raise ConfigError: one is no network, or there are more than a program can hold.
    """
    networks = [_network(prefix) for prefix in prefixes]
    four = [each for network in networks if network.version == 4 for each in _checkFour(network)]
    six = [each for network in networks if network.version == 6 for each in _checkSix(network)]
    program: list[_Instruction] = [
        *_demand(_PACKET_TYPE, _FOR_THIS_HOST),
        *_demand(_VLAN_TAGGED, 0),
        (_LOAD, 0, 0, _PROTOCOL),
    ]
    if four:
        program += _only(ETH_P_IP, [(_LOAD, 0, 0, _DESTINATION_V4), (_KEEP, 0, 0, 0), *four])
    if six:
        program += _only(ETH_P_IPV6, six)
    program.append((_RETURN, 0, 0, _NOTHING))
    if len(program) > MOST_INSTRUCTIONS:
        raise ConfigError(f"--capture: {len(prefixes)} networks are more than the kernel can look at; join some")
    return b"".join(INSTRUCTION.pack(*each) for each in program)


def _network(prefix: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(prefix)
    except ValueError as error:
        raise ConfigError(f"--capture {prefix}: expected ADDRESS/LENGTH, {error}") from None


def _demand(place: int, value: int) -> list[_Instruction]:
    """Go on only if a word has this value."""
    return [(_LOAD, 0, 0, place), (_EQUAL, 1, 0, value), (_RETURN, 0, 0, _NOTHING)]


def _only(protocol: int, body: list[_Instruction]) -> list[_Instruction]:
    """Run a body for packets of one protocol; of these nothing is taken that it does not take."""
    # The way around it may be longer than a comparison can go.
    return [(_EQUAL, 1, 0, protocol), (_JUMP, 0, 0, len(body) + 1), *body, (_RETURN, 0, 0, _NOTHING)]


def _checkFour(network: ipaddress.IPv4Network) -> list[_Instruction]:
    """Return if the destination, which was put aside, is in a network."""
    mask, wanted = int(network.netmask), int(network.network_address)
    return [(_FETCH, 0, 0, 0), (_AND, 0, 0, mask), (_EQUAL, 0, 1, wanted), (_RETURN, 0, 0, _ALL)]


def _checkSix(network: ipaddress.IPv6Network) -> list[_Instruction]:
    """The same of an IPv6 destination, word by word, as many as the network's length covers."""
    masks, wanted = _words(int(network.netmask)), _words(int(network.network_address))
    count = -(-network.prefixlen // 32)
    checks: list[_Instruction] = []
    for place in range(count):
        over = 3 * (count - 1 - place) + 1
        checks += [
            (_LOAD, 0, 0, _DESTINATION_V6 + 4 * place),
            (_AND, 0, 0, masks[place]),
            (_EQUAL, 0, over, wanted[place]),
        ]
    return [*checks, (_RETURN, 0, 0, _ALL)]


def _words(number: int) -> list[int]:
    return [number >> shift & 0xFFFFFFFF for shift in (96, 64, 32, 0)]
