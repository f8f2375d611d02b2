# The server end: takes links on port 3456 of this machine and sends their datagrams straight to the targets.
# Start it in the foreground with: twistd -ny tap-configs/udp-server.tac

from twisted.application import service

from udptunnel.tap.server import Options, makeService

options = Options()
options.parseOptions(["--listen", "tcp:3456:interface=127.0.0.1", "--egress", "direct"])
application = service.Application("udp-server")
makeService(options).setServiceParent(application)
