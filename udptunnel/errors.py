"""
Exceptions, each named for the action that failed or the rule that was broken.

All derive from L{TunnelError}, so that an embedding program can catch ours
and nothing else.
"""

from __future__ import annotations


class TunnelError(Exception):
    """Something in this package could not be done."""


class AddressError(TunnelError, ValueError):
    """A text or a byte string is not an address."""


class TruncatedError(TunnelError, ValueError):
    """A value ends before it is complete."""


class FrameError(TunnelError, ValueError):
    """The other end of a link sent bytes that are no frame, or a frame that may not stand where it stood."""


class PacketError(TunnelError, ValueError):
    """Bytes are no packet that we can use, or no packet can be made of what is asked for."""


class SocksError(TunnelError):
    """A SOCKS5 exchange failed, or a file of SOCKS5 credentials can not be read."""


class FragmentedError(SocksError):
    """A SOCKS5 UDP header announces a fragment; fragments are not reassembled (RFC 1928 section 7 allows that)."""


class AccessRuleError(TunnelError, ValueError):
    """An access rule is not a network in CIDR notation."""


class ConfigError(TunnelError, ValueError):
    """An option or a configuration file is wrong. The text names the option, its value and what is allowed."""


class ListenError(TunnelError):
    """A port could not be opened. The text names it."""


class MissingError(ConfigError, ListenError):
    """This system lacks what something takes; the text names all of it. It shows when a role is made, or starts."""


class RouteError(ListenError):
    """The machine's routes can not be what was asked for. The text names the option, and the way out."""


class LoginError(TunnelError):
    """A link came up, but the two ends did not agree to use it."""


class RefusedError(LoginError):
    """
    One end does not let the other in, or does not believe that it is who it
    should be. Trying again at once would not help.
    """


class ResolveError(TunnelError):
    """A name has no address, or may not be asked for."""
