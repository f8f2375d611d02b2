# The local end: a SOCKS5 server on port 1234, and one link to udp-server on port 3456 of this machine.
# Start it in the foreground with: twistd -ny tap-configs/udp-local.tac

from twisted.application import service

from udptunnel.tap.local import Options, makeService

options = Options()
options.parseOptions(["--socks", "tcp:1234:interface=127.0.0.1", "--server", "tcp:127.0.0.1:3456"])
application = service.Application("udp-local")
makeService(options).setServiceParent(application)
