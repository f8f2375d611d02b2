"""
Takes IP packets as the VPN programs of phones do: from a descriptor that is the host's own, by call and by callback.

Here the host opens a TUN itself, to have a descriptor; address and routes are up to you. UDP goes to udp-server, TCP to
a SOCKS5 server. Linux, as root:

    python docs/examples/embed_packets.py phone0 tcp:192.0.2.1:3456 127.0.0.1:1080
"""

import fcntl
import os
import signal
import struct
import sys

from udptunnel.api import Event, Failed, LogLine, start_tun2socks, start_udp_local
from udptunnel.config import LocalConfig, Tun2socksConfig
from udptunnel.wire.address import Address

MTU = 1400

# From linux/if_tun.h: a device of IP packets, without a header before each.
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def happened(event: Event, data: object) -> None:
    if isinstance(event, LogLine):
        print(event.text, file=sys.stderr, flush=True)
    elif isinstance(event, Failed):
        os.kill(os.getpid(), signal.SIGTERM)


def main(name: str, server: str, socks: str) -> None:
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))

    def received(packets: list[bytes], data: object) -> None:
        for packet in packets:
            try:
                os.write(tun, packet)
            except OSError:
                # The device is down or full, and IP may lose packets.
                continue

    local = start_udp_local(LocalConfig(socks="none", server=(server,)), happened)
    profile = Tun2socksConfig(socksServerAddr=Address.parse(socks), mtu=MTU)
    packets = start_tun2socks(profile, happened, packetsReceived=received, local=local)
    print(f"TCP by stack {packets.stats()['stack']}", flush=True)
    signal.signal(signal.SIGTERM, lambda *arguments: sys.exit())
    try:
        while True:
            packets.sendPackets([os.read(tun, 65535)])
    finally:
        packets.stop()
        local.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
