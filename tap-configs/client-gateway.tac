# A client's gateway in one process: what goes into the TUN tun0 leaves as TCP to the SOCKS5 server at port 1080 of this
# machine, and as UDP over a link to udp-server at port 3456, without a SOCKS5 hop between them.
# Start it in the foreground, as root, with: twistd -ny tap-configs/client-gateway.tac

from twisted.application import service

from udptunnel.tap import local, tun2socks

localOptions, tunOptions = local.Options(), tun2socks.Options()
localOptions.parseOptions(["--socks", "none", "--server", "tcp:127.0.0.1:3456"])
tunOptions.parseOptions(["--tundev", "tun0", "--socks-server-addr", "127.0.0.1:1080"])
application = service.Application("client-gateway")
ours = local.makeService(localOptions)
ours.setServiceParent(application)
tun2socks.makeService(tunOptions, ours).setServiceParent(application)
