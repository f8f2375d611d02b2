# An exit's gateway behind shadowsocks, all of it started from here: ss-server takes what client-gateway-shadowsocks.tac
# sends, and brings the links to udp-server, which starts a tun2socks of its own, in this process, before an ss-local
# that leads to a second ss-server. Replace 203.0.113.9, where that one is (it needs -u), and both PASSWORDs. TCP leaves
# from this machine. No root is needed. Start it in the foreground with:
# twistd -ny tap-configs/exit-gateway-shadowsocks.tac

from twisted.application import service

from udptunnel.tap import carrier, server

method = ["-k", "PASSWORD", "-m", "chacha20-ietf-poly1305", "--no-delay"]
plugin = ["--plugin", "obfs-server", "--plugin-opts", "obfs=http"]
beyond = ["-s", "203.0.113.9", "-p", "8388", "-b", "127.0.0.1", "-l", "1080", "-u"]
options = server.Options()
options.parseOptions(["--listen", "tcp:3456:interface=127.0.0.1", "--egress", "tun2socks:127.0.0.1:1080"])
application = service.Application("exit-gateway-shadowsocks")
carrier.makeService("ss-server", "-s", "0.0.0.0", "-p", "8389", *method, *plugin).setServiceParent(application)
carrier.makeService("ss-local", *beyond, *method).setServiceParent(application)
server.makeService(options).setServiceParent(application)
