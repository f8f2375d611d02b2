"""C{socks5:HOST:PORT:endpoint=...}: a client endpoint that connects through a SOCKS5 server."""

from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint, IStreamClientEndpointStringParserWithReactor
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamClientEndpointStringParserWithReactor)
class Socks5ClientEndpointParser:
    """Parses the description of a C{socks5} client endpoint."""

    prefix = "socks5"

    def parseStreamClient(self, reactor: Any, *args: Any, **kwargs: Any) -> IStreamClientEndpoint:
        """Hand over to the real parser, which is imported only here: every C{twistd} on the machine reads this file."""
        from udptunnel.net.socks5client import parseEndpoint

        return parseEndpoint(reactor, *args, **kwargs)


socks5 = Socks5ClientEndpointParser()
