"""How many examples a property is tried with: C{UDPTUNNEL_EXAMPLES}, or enough for a quick local run."""

import os

EXAMPLES: int = int(os.environ.get("UDPTUNNEL_EXAMPLES", "1000"))
