"""The roles that C{twistd} lists."""

from twisted.application.service import ServiceMaker

udpLocal = ServiceMaker(
    "udptunnel local end",
    "udptunnel.tap.local",
    "Take UDP in, as a SOCKS5 server and from fixed forwards, and carry it over TCP to udp-server.",
    "udp-local",
)

udpServer = ServiceMaker(
    "udptunnel server",
    "udptunnel.tap.server",
    "Take UDP out of the TCP links of udp-local, send it to its targets and carry the replies back.",
    "udp-server",
)

tun2socks = ServiceMaker(
    "udptunnel tun2socks",
    "udptunnel.tap.tun2socks",
    "Send the TCP that comes out of a TUN to one SOCKS5 server, and the UDP to the same one or another.",
    "tun2socks",
)

proxyController = ServiceMaker(
    "udptunnel proxy controller",
    "udptunnel.tap.controller",
    "Lead the machine's packets through a TUN when a client asks for it over a Unix socket.",
    "proxy-controller",
)

l3Tunnel = ServiceMaker(
    "udptunnel l3-tunnel",
    "udptunnel.tap.l3",
    "Carry the IP packets between two networks over UDP, sealed, without an interface of its own.",
    "l3-tunnel",
)
