# A client's gateway behind shadowsocks, all of it started from here: what goes into the TUN tun0 leaves as TCP through
# ss-local, and as UDP over a link to udp-server that goes through ss-local as well; on the wire it looks like HTTP.
# Replace 203.0.113.5, the machine of exit-gateway-shadowsocks.tac, and PASSWORD. Then start it, as root, with:
# twistd -ny tap-configs/client-gateway-shadowsocks.tac

from twisted.application import service

from udptunnel.tap import carrier, local, tun2socks

shadowsocks = ["-s", "203.0.113.5", "-p", "8389", "-k", "PASSWORD", "-m", "chacha20-ietf-poly1305", "--no-delay"]
plugin = ["--plugin", "obfs-local", "--plugin-opts", "obfs=http;obfs-host=www.example.com"]
localOptions, tunOptions = local.Options(), tun2socks.Options()
localOptions.parseOptions(["--socks", "none", "--via", "127.0.0.1:1080", "--server", "tcp:127.0.0.1:3456"])
tunOptions.parseOptions(["--tundev", "tun0", "--socks-server-addr", "127.0.0.1:1080"])
application = service.Application("client-gateway-shadowsocks")
carrier.makeService("ss-local", *shadowsocks, "-b", "127.0.0.1", "-l", "1080", *plugin).setServiceParent(application)
ours = local.makeService(localOptions)
ours.setServiceParent(application)
tun2socks.makeService(tunOptions, ours).setServiceParent(application)
