"""
Runs both ends of a tunnel by way of the C library, as any other language would: it knows nothing but udptunnel.h.

It sends three datagrams through them, and prints what arrives and what comes back.

    python docs/examples/embed_ctypes.py build/capi/lib/libudptunnel.so
"""

import ctypes
import queue
import socket
import sys
from ctypes import (
    CFUNCTYPE,
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_double,
    c_int,
    c_size_t,
    c_uint16,
    c_uint64,
    c_void_p,
)

READY, SESSION_UP, INFO = 1, 2, 2


class Event(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("kind", c_int),
        ("handle", c_void_p),
        ("socks_fd", c_int),
        ("udp_fd", c_int),
        ("socks_address", c_char_p),
        ("udp_address", c_char_p),
        ("session", c_char_p),
        ("resumed", c_int),
        ("level", c_int),
        ("text", c_char_p),
    )


class Datagram(Structure):
    _fields_ = (
        ("bytes", c_void_p),
        ("size", c_size_t),
        ("host", c_char_p),
        ("port", c_uint16),
        ("source", c_uint64),
    )


Happened = CFUNCTYPE(None, POINTER(Event), c_void_p)
DatagramsReceived = CFUNCTYPE(None, POINTER(Datagram), c_size_t, c_void_p)


class Callbacks(Structure):
    _fields_ = (
        ("size", c_size_t),
        ("happened", Happened),
        ("datagrams_received", DatagramsReceived),
        ("packets_received", c_void_p),
        ("log_level", c_int),
        ("statistics_seconds", c_double),
    )


class Option(Structure):
    _fields_ = (("name", c_char_p), ("value", c_char_p))


def profile(*fields: str) -> type[Structure]:
    """All fields of a profile but the first and the last two are texts."""
    ends = [("options", POINTER(Option)), ("option_count", c_size_t)]
    members = [("size", c_size_t), *((field, c_char_p) for field in fields), *ends]
    return type("Profile", (Structure,), {"_fields_": members})


LocalProfile = profile("server", "socks", "forward", "via", "connect_via", "secret", "tls", "tls_trust")
ServerProfile = profile("listen", "egress", "allow", "deny", "secrets", "tls")


def main(path: str) -> None:
    library = ctypes.CDLL(path)
    library.udptunnel_strerror.restype = library.udptunnel_why.restype = c_char_p
    library.udptunnel_stop.argtypes = (c_void_p,)
    library.udptunnel_send.argtypes = c_void_p, c_char_p, c_size_t, c_char_p, c_uint16, c_uint64
    happenings: queue.Queue[tuple[int, bytes | None]] = queue.Queue()
    answers: queue.Queue[tuple[str, int, int, bytes]] = queue.Queue()

    @Happened
    def happened(event: ctypes._Pointer, data: int | None) -> None:
        if event[0].kind in (READY, SESSION_UP):
            happenings.put((event[0].kind, event[0].socks_address))

    @DatagramsReceived
    def received(datagrams: ctypes._Pointer, count: int, data: int | None) -> None:
        for each in datagrams[:count]:
            answers.put((each.host.decode(), each.port, each.source, ctypes.string_at(each.bytes, each.size)))

    def require(error: int) -> None:
        if error:
            sys.exit(f"{library.udptunnel_strerror(error).decode()}: {library.udptunnel_why().decode()}")

    callbacks = Callbacks(ctypes.sizeof(Callbacks), happened, received, None, INFO, 0)
    server, local = c_void_p(), c_void_p()
    asked = ServerProfile(ctypes.sizeof(ServerProfile), listen=b"tcp:0:interface=127.0.0.1", allow=b"127.0.0.0/8")
    require(library.udptunnel_start_udp_server(byref(asked), byref(callbacks), None, byref(server)))
    _, address = happenings.get(timeout=10)
    asked = LocalProfile(ctypes.sizeof(LocalProfile), server=b"tcp:" + (address or b""), socks=b"none")
    require(library.udptunnel_start_udp_local(byref(asked), byref(callbacks), None, byref(local)))

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as target:
        target.bind(("127.0.0.1", 0))
        target.settimeout(10)
        for number in range(3):
            text = b"hello %d" % number
            require(library.udptunnel_send(local, text, len(text), b"127.0.0.1", target.getsockname()[1], number))
            arrived, back = target.recvfrom(100)
            print(f"there: {arrived.decode()}")
            target.sendto(arrived.upper(), back)
            host, port, source, answer = answers.get(timeout=10)
            print(f"back from {host}:{port} for source {source}: {answer.decode()}")
    require(library.udptunnel_stop(local))
    require(library.udptunnel_stop(server))


if __name__ == "__main__":
    main(sys.argv[1])
