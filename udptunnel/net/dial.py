"""
One request to a SOCKS5 server, on a TCP connection of its own.

Twisted's transports keep their socket to themselves. Here it is what the
caller gets: once the server has agreed, the kernel moves the bytes, and Twisted
sees none of them. Nothing that the kernel or the server says is raised: the
caller is told once how it ended. The methods stand in the order in which a
dial goes through them.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IReadWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from udptunnel.errors import AddressError, SocksError
from udptunnel.net.pacing import delayPacing, settlePacing
from udptunnel.net.sockaddr import familyOf
from udptunnel.wire.address import Address
from udptunnel.wire.socks5 import ClientNegotiation, Command, Reply, ReplyCode

NEGOTIATION_SECONDS = 30.0
"""How long it may take until the server has connected the target."""

KEEPALIVE_IDLE, KEEPALIVE_INTERVAL, KEEPALIVE_PROBES = 120, 60, 10
"""
Seconds of silence before the first probe, and between the next ones; and how many may stay without an answer.

The first is shorter than what NATs forget TCP connections after (five minutes
in many phone networks); all together they forgive a network that is gone for ten minutes.
"""

_READ_BYTES = 4096
"""More than the longest messages of a server."""

_OUR_OWN = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EPERM))
"""What goes wrong on this machine, and says nothing about the server."""

_NOT_YET = frozenset((errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR, errno.EINPROGRESS, errno.EALREADY))


@dataclass(frozen=True)
class Proxy:
    """A SOCKS5 server."""

    address: Address
    """Its host is numeric."""

    user: str = ""
    """Offered if this or the password is not empty (RFC 1929)."""

    password: str = ""
    mark: int = 0
    """SO_MARK of our sockets, by which routing rules know them; 0 for none. Needs CAP_NET_ADMIN."""


class Fault(Enum):
    """Whose fault it is that a dial failed."""

    TARGET = "the server has refused what it was asked, or has ended the connection instead"
    SILENT = "the server was asked, and is probably still waiting for the target"
    LOGIN = "the server does not let us in, or is none"
    SERVER = "the server can not be reached, or breaks the connection before it is asked"
    OURS = "this machine has no room or no permission for another connection"


class Caller(Protocol):
    """Who is told how a dial ended, once."""

    def reached(self, opened: socket.socket, reply: Reply, rest: bytes) -> None:
        """
        The server has done what it was asked.

        @param opened: the connection, not blocking; the caller's from now on.
        @param rest: what has arrived behind the reply, for some targets speak first.
        """

    def failed(self, why: str, code: int) -> None:
        """
        It has not.

        @param why: in words; names the server.
        @param code: the server's reply; if there was none, that which comes closest.
        """


def equip(opened: socket.socket) -> None:
    """
    Give a TCP socket what all of ours have: it does not block or hold back small segments, and looks now and then
    whether its peer is still there.
    """
    opened.setblocking(False)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):
            opened.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


_KEEPALIVE = (
    ("TCP_KEEPIDLE", KEEPALIVE_IDLE),
    ("TCP_KEEPINTVL", KEEPALIVE_INTERVAL),
    ("TCP_KEEPCNT", KEEPALIVE_PROBES),
)


@implementer(IReadWriteDescriptor)
class Dial:
    """
    One request: connects to the server, negotiates, and hands the connection on.

    The caller is never told from within L{start} or L{cancel}.

    @ivar asked: whether the server is one, has let us in, and got the request.
    @ivar fault: whose fault it was, once it has failed.
    """

    __slots__ = (
        "_caller",
        "_command",
        "_connected",
        "_deadline",
        "_negotiation",
        "_proxy",
        "_reactor",
        "_socket",
        "_target",
        "_unsent",
        "fault",
    )

    def __init__(self, reactor: Any, proxy: Proxy, command: Command, target: Address, caller: Caller) -> None:
        """
        @param reactor: provides C{IReactorFDSet} and C{IReactorTime}.
        @param target: what the request is about; its host may be a name, which the server looks up.
        """
        self._reactor = reactor
        self._proxy = proxy
        self._command = command
        self._target = target
        self._caller = caller
        self._socket: socket.socket | None = None
        self._negotiation: ClientNegotiation | None = None
        self._deadline: IDelayedCall | None = None
        self._connected = False
        self._unsent = b""
        self.fault = Fault.TARGET

    @property
    def asked(self) -> bool:
        """Whether the server has let us in, and got the request."""
        return self._negotiation is not None and self._negotiation.asked

    def start(self) -> None:
        """Begin; to be called once."""
        try:
            self._negotiation = self._prepare()
            self._connect()
        except AddressError as error:
            self._failSoon(str(error), ReplyCode.GENERAL_FAILURE, Fault.TARGET)
        except SocksError as error:
            self._failSoon(str(error), ReplyCode.GENERAL_FAILURE, Fault.LOGIN)
        except OSError as error:
            self._failSoon(*self._classify(error))
        else:
            self._deadline = self._reactor.callLater(NEGOTIATION_SECONDS, self._expired)

    def cancel(self) -> None:
        """Stop, and tell nobody. It may be over already."""
        opened = self._detach()
        if opened is not None:
            opened.close()

    # -- the connection

    def _prepare(self) -> ClientNegotiation:
        return ClientNegotiation(self._command, self._target, self._proxy.user, self._proxy.password)

    def _connect(self) -> None:
        host, port = self._proxy.address
        opened = self._socket = socket.socket(familyOf(host), socket.SOCK_STREAM)
        equip(opened)
        delayPacing(opened)
        if self._proxy.mark:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._proxy.mark)
        code = opened.connect_ex((host, port))
        if code and code not in _NOT_YET:
            raise OSError(code, os.strerror(code))
        self._reactor.addWriter(self)

    def fileno(self) -> int:
        """The descriptor; -1 when there is none."""
        return -1 if self._socket is None else self._socket.fileno()

    def logPrefix(self) -> str:
        """What log lines about this dial begin with."""
        return f"SOCKS5 {self._proxy.address}"

    def doWrite(self) -> None:
        """The connection is there, or can not be had, or takes more."""
        if self._socket is None:
            return
        if not self._connected:
            self._greet(self._socket)
        if self._unsent:
            self._send()

    def _greet(self, opened: socket.socket) -> None:
        code = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._fail(*self._classify(OSError(code, os.strerror(code))))
        elif self._negotiation is not None:
            self._connected = True
            settlePacing(opened)
            self._unsent = self._negotiation.begin()
            self._reactor.addReader(self)

    def _send(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._unsent)
        except OSError as error:
            if error.errno not in _NOT_YET:
                self._fail(*self._classify(error))
            return
        self._unsent = self._unsent[sent:]
        if not self._unsent:
            self._reactor.removeWriter(self)

    def connectionLost(self, reason: Failure) -> None:
        """The reactor has no more use for the descriptor: poll() reports a refused connection in this way."""
        if self._socket is not None:
            code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or errno.ECONNABORTED
            self._fail(*self._classify(OSError(code, os.strerror(code))))

    # -- the negotiation

    def doRead(self) -> None:
        """The server has said something, or the last thing."""
        if self._socket is None or self._negotiation is None:
            return
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            if error.errno not in _NOT_YET:
                self._fail(*self._classify(error))
            return
        if data:
            self._received(self._negotiation, data)
        else:
            why = f"the SOCKS5 server {self._proxy.address} closed the connection"
            self._fail(why, ReplyCode.GENERAL_FAILURE, self._theirFault)

    def _received(self, negotiation: ClientNegotiation, data: bytes) -> None:
        answer = negotiation.receive(data)
        if negotiation.failed:
            refusal = ReplyCode.NOT_ALLOWED if negotiation.reply is None else negotiation.reply.code
            fault = Fault.TARGET if self.asked else Fault.LOGIN
            self._fail(f"{negotiation.failed} ({self._proxy.address})", refusal, fault)
        elif negotiation.reply is not None:
            self._succeed(negotiation.reply, negotiation.rest)
        elif answer:
            self._unsent += answer
            self._reactor.addWriter(self)
            self._send()

    # -- the end

    def _succeed(self, reply: Reply, rest: bytes) -> None:
        opened = self._detach()
        if opened is not None:
            self._caller.reached(opened, reply, rest)

    def _expired(self) -> None:
        """A server that has let us in and then says nothing waits for the target."""
        why = f"the SOCKS5 server {self._proxy.address} does not answer within {NEGOTIATION_SECONDS:g} s"
        if self.asked:
            self._fail(why, ReplyCode.TTL_EXPIRED, Fault.SILENT)
        else:
            self._fail(why, ReplyCode.HOST_UNREACHABLE, Fault.SERVER)

    def _classify(self, error: OSError) -> tuple[str, int, Fault]:
        """What an error of the kernel means for the caller."""
        server = f"the SOCKS5 server {self._proxy.address}"
        if error.errno in _OUR_OWN:
            return f"no connection to {server}: {error.strerror}", ReplyCode.GENERAL_FAILURE, Fault.OURS
        if self._connected:
            why = f"{server} broke the connection: {error.strerror}"
            return why, ReplyCode.GENERAL_FAILURE, self._theirFault
        code = ReplyCode.CONNECTION_REFUSED if error.errno == errno.ECONNREFUSED else ReplyCode.HOST_UNREACHABLE
        return f"{server} can not be reached: {error.strerror}", code, Fault.SERVER

    @property
    def _theirFault(self) -> Fault:
        """Some servers break the connection where they should say that there is no target."""
        return Fault.TARGET if self.asked else Fault.SERVER

    def _failSoon(self, why: str, code: int, fault: Fault) -> None:
        self.cancel()
        self._deadline = self._reactor.callLater(0, self._fail, why, code, fault)

    def _fail(self, why: str, code: int, fault: Fault) -> None:
        self.cancel()
        self.fault = fault
        self._caller.failed(why, code)

    def _detach(self) -> socket.socket | None:
        """Leave the reactor, and get the socket, if there is one."""
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()
        opened = self._socket
        if opened is not None:
            # Reactors ask for the number when they are told to forget somebody.
            self._reactor.removeReader(self)
            self._reactor.removeWriter(self)
            self._socket = None
        return opened
