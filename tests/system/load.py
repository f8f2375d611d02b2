"""
Numbered datagrams at a steady rate, and what becomes of them.

Two programs, so that neither keeps the other from its work:

    python -m tests.system.load send HOST PORT SIZE RATE COUNT
    python -m tests.system.load receive HOST PORT SIZE COUNT

Each byte of a datagram depends on its number, so that damage anywhere shows.
"""

from __future__ import annotations

import json
import socket
import struct
import sys
import time

SO_RCVBUFFORCE = 33
PATIENCE_SECONDS, SILENCE_SECONDS, LAST_SECONDS = 15.0, 2.0, 0.3
"""How long to wait for the first datagram, for each other one, and for more than there should be."""

_NUMBER = struct.Struct("!Q")


def datagram(number: int, size: int) -> bytes:
    """The datagram of a number: the number, over and over."""
    return (_NUMBER.pack(number) * (size // _NUMBER.size + 1))[:size]


def _open(host: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)


def send(host: str, port: int, size: int, rate: int, count: int) -> dict[str, float]:
    """Send datagrams, and tell how fast that went."""
    with _open(host) as udp:
        udp.connect((host, port))
        begin = time.monotonic()
        for number in range(count):
            while (ahead := number / rate - (time.monotonic() - begin)) > 0:
                time.sleep(min(ahead, 0.001))
            udp.send(datagram(number, size))
        return {"sent": count, "seconds": time.monotonic() - begin}


def receive(host: str, port: int, size: int, count: int) -> dict[str, int]:
    """Receive until all have come, or no more do, and tell what was wrong with them."""
    seen = bytearray(count)
    damaged = reordered = duplicate = received = 0
    last = -1
    with _open(host) as udp:
        udp.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        udp.bind((host, port))
        udp.settimeout(PATIENCE_SECONDS)
        while True:
            try:
                payload = udp.recv(65535)
            except TimeoutError:
                break
            number = _NUMBER.unpack_from(payload)[0] if len(payload) >= _NUMBER.size else count
            if number >= count or payload != datagram(number, size):
                damaged += 1
                continue
            reordered += number < last
            duplicate += seen[number]
            received += not seen[number]
            seen[number] = 1
            last = max(last, number)
            udp.settimeout(SILENCE_SECONDS if received < count else LAST_SECONDS)
    return {
        "received": received,
        "lost": count - received,
        "damaged": damaged,
        "reordered": reordered,
        "duplicate": duplicate,
    }


def main(kind: str, host: str, *numbers: str) -> None:
    """Do one of both, and print the result as a JSON object."""
    work = {"send": send, "receive": receive}[kind]
    print(json.dumps(work(host, *map(int, numbers))))  # type: ignore[operator]


if __name__ == "__main__":
    main(*sys.argv[1:])
