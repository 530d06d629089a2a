"""The name server of `sidecar exec`: every DNS question of a program, judged and answered.

    udp, tcp    how questions come and answers go
    server      from a question to its answer
    messages    the wire: twisted.names' records, our own limits
    questions   what is answered here, what is refused, what is asked further
    filtering   what of an answer is passed on
    chains      where an answer leads
    forwarding  asking the host's own name servers; asking is one question of them
    resolvconf  who those are
    service     all of it, started and stopped
    resolving   the names that sidecar itself wants to know, found the same way

The sockets are made by `sidecar.sandbox.listeners`, where the program is.
docs/reference/dns.md is the description for users.
"""
