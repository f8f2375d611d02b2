# An exit's gateway in one process: udp-server takes links at port 3456 of this machine, and what it sends goes as IP
# packets, without a file in between, to tun2socks, which sends it to the SOCKS5 server at port 1080 of this machine.
# That may be ss-local (with -u) before a second ss-server, or any other that carries UDP. No root is needed.
# Start it in the foreground with: twistd -ny tap-configs/exit-gateway.tac

from twisted.application import service

from udptunnel.net.packetpipe import joint
from udptunnel.tap import server, tun2socks

serverOptions, tunOptions = server.Options(), tun2socks.Options()
serverOptions.parseOptions(["--listen", "tcp:3456:interface=127.0.0.1"])
tunOptions.parseOptions(["--socks-server-addr", "127.0.0.1:1080", "--stack", "none", "--udp-idle", "300"])
near, far = joint()
application = service.Application("exit-gateway")
server.makeService(serverOptions, near).setServiceParent(application)
tun2socks.makeService(tunOptions, pipe=far).setServiceParent(application)
