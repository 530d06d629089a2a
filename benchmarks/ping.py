"""The client of the latency measure: `python -m benchmarks.ping PORT SECONDS`.

A process of its own, blocking, one connection, 64 bytes there and back. Prints the
round trip's percentiles as JSON, in nanoseconds.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
from time import perf_counter_ns

from benchmarks.processes import HOST
from benchmarks.stats import percentile

__all__ = ["ping"]

_MESSAGE_BYTES = 64
_WARM_UP_ROUND_TRIPS = 500
_TIMEOUT_SECONDS = 5.0


def ping(port: int, seconds: int) -> list[int]:
    """Return every round trip's nanoseconds, ascending."""
    times: list[int] = []
    message = b"p" * _MESSAGE_BYTES
    buffer = memoryview(bytearray(_MESSAGE_BYTES))
    with socket.create_connection((HOST, port), _TIMEOUT_SECONDS) as connection:
        connection.settimeout(None)  # a Python timeout would cost a poll() per call
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        gc.disable()
        send, receive = connection.sendall, connection.recv_into
        end = perf_counter_ns() + seconds * 1_000_000_000
        now = 0
        while now < end:
            before = perf_counter_ns()
            send(message)
            count = 0
            while count < _MESSAGE_BYTES:
                got = receive(buffer[count:])
                if not got:
                    raise ConnectionResetError
                count += got
            now = perf_counter_ns()
            times.append(now - before)
    return sorted(times[_WARM_UP_ROUND_TRIPS:])


if __name__ == "__main__":
    ordered = ping(int(sys.argv[1]), int(sys.argv[2]))
    json.dump({"p50": percentile(ordered, 50), "p99": percentile(ordered, 99)}, sys.stdout)
