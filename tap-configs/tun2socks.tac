# What goes into the TUN tun0, TCP and UDP alike, through the SOCKS5 server at port 1080 of this machine.
# Start it in the foreground, as root, with: twistd -ny tap-configs/tun2socks.tac

from twisted.application import service

from udptunnel.tap.tun2socks import Options, makeService

options = Options()
options.parseOptions(["--tundev", "tun0", "--socks-server-addr", "127.0.0.1:1080"])
application = service.Application("tun2socks")
makeService(options).setServiceParent(application)
