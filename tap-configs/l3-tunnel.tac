# The packets that come in at eth1 for 10.2.0.0/16, to the l3-tunnel at 198.51.100.7, and those of 10.2.0.0/16 back.
# Start it in the foreground, as root, with: twistd -ny tap-configs/l3-tunnel.tac

from twisted.application import service

from udptunnel.tap.l3 import Options, makeService

options = Options()
options.parseOptions(
    ["--interface", "eth1", "--capture", "10.2.0.0/16", "--peer", "198.51.100.7:50000", "--key-file", "tunnel.key"]
)
application = service.Application("l3-tunnel")
makeService(options).setServiceParent(application)
