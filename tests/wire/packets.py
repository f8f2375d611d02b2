"""Packets that several tests read, made with scapy 2.8.0."""

from __future__ import annotations

from udptunnel.wire.ip import packHost

ALICE4, BOB4 = packHost("192.0.2.1"), packHost("198.51.100.7")
ALICE6, BOB6 = packHost("2001:db8::1"), packHost("2001:db8::7")

PAIRS = ((ALICE4, BOB4), (ALICE6, BOB6))

_FROM_ALICE6_TO_BOB6 = "20010db8000000000000000000000001 20010db8000000000000000000000007"

UDP4 = bytes.fromhex("45000021 00004000 40114e90 c0000201 c6336407 0fa00035 000dbff0 68656c6c6f")
UDP6 = bytes.fromhex("60000000 000d1140" + _FROM_ALICE6_TO_BOB6 + "0fa00035 000d50b3 68656c6c6f")
"""From port 4000 of Alice to port 53 of Bob: hello."""

SYN4 = bytes.fromhex(
    "4500002c 00074000 40064e89 c0000201 c6336407 9c4001bb 01020304 00000000 6002faf0 0ef80000 020405b4"
)
SYN6 = bytes.fromhex(
    "60000000 00180640" + _FROM_ALICE6_TO_BOB6 + "9c4001bb ffffffff 00000000 6002faf0 a3d40000 020405a0"
)
"""From port 40000 of Alice to port 443 of Bob, with an MSS; the second one with the largest sequence number."""

ECHO4 = bytes.fromhex("45000020 00010000 40018ea0 c0000201 c6336407 0800192c 00010002 70696e67")
ECHO6 = bytes.fromhex("60000000 000c3a40" + _FROM_ALICE6_TO_BOB6 + "8000456b 00010002 70696e67")
"""An echo request: ping."""

OPTIONS4 = bytes.fromhex("48000029 00010000 40113e79 c0000201 c6336407 440c0901 00000000 00000001 00010002 00099b9c 78")
"""UDP from port 1 to port 2 behind a timestamp option of 12 bytes."""

EXTENSIONS6 = bytes.fromhex(
    "60000000 00210040" + _FROM_ALICE6_TO_BOB6 + "3c00050200000100 2b00010400000000 1100000000000000"
    "00010002 00092c5f 78"
)
"""The same behind hop-by-hop options, destination options and a routing header."""

FRAGMENT6 = bytes.fromhex(
    "60000000 00180040" + _FROM_ALICE6_TO_BOB6 + "2c00010400000000 1100000100000005 0fa00035 00150000"
)
"""The first eight bytes of a UDP datagram, behind hop-by-hop options and a fragment header."""

WHOLE = (UDP4, UDP6, SYN4, SYN6, ECHO4, ECHO6, OPTIONS4, EXTENSIONS6)
