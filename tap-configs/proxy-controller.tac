# The controller of the machine's routes: commands at /run/udptunnel.sock, for root alone.
# Start it in the foreground with: twistd -ny tap-configs/proxy-controller.tac

from twisted.application import service

from udptunnel.tap.controller import Options, makeService

options = Options()
options.parseOptions(["--socket", "/run/udptunnel.sock", "--tundev", "tun0", "--address", "10.0.85.1/24"])
application = service.Application("proxy-controller")
makeService(options).setServiceParent(application)
