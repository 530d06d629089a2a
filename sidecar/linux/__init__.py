"""Everything that talks to the Linux kernel beyond plain sockets."""

__all__ = ["OWN_MARK", "TPROXY_MARK"]

# The firewall mark (SO_MARK) of sidecar's own packets, by which interception rules
# tell them from everybody else's. What Istio's ambient mode uses for the same
# purpose, so rule sets that know either know both.
OWN_MARK = 0x539

# Mark of packets (and connections) on their way into the TPROXY listener.
TPROXY_MARK = 0x53A
