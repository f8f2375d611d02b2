"""
UDP over TCP: datagrams in at one end, over TCP links through any carrier, and out at the other.

Nothing is imported here, so that finding the twistd plugins stays cheap. The
layers, from the bottom: L{udptunnel.wire} (formats), L{udptunnel.core}
(rules), L{udptunnel.net} (descriptors), L{udptunnel.services} (roles) and
L{udptunnel.tap} (command lines).
"""

__version__ = "0.1.0"
