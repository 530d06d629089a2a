"""What the benchmarks read out of other programs' output."""

from __future__ import annotations

import json

import pytest

from benchmarks.measures import MeasureError, iperf_gbits, wrk_rate

WRK = """\
Running 1s test @ http://127.0.0.1:28000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.58ms  335.24us   5.98ms   88.14%
    Req/Sec    12.05k   631.45    13.10k    70.00%
  12054 requests in 1.01s, 1.75MB read
Requests/sec:  11934.70
Transfer/sec:      1.73MB
"""


def test_wrk_rate_is_requests_per_second() -> None:
    """The line Requests/sec is the result."""
    assert 11934.70 == wrk_rate(WRK)


@pytest.mark.parametrize(
    "output",
    [
        WRK.replace("Requests/sec", "  Socket errors: connect 0, read 3, write 0, timeout 0\nR"),
        WRK.replace("Requests/sec", "  Non-2xx or 3xx responses: 7\nRequests/sec"),
        "unable to connect to 127.0.0.1:1 Connection refused\n",
        "Requests/sec:      0.00\n",
        "",
    ],
)
def test_wrk_with_errors_is_no_result(output: str) -> None:
    """A rate that counts failures, or nothing, is refused."""
    with pytest.raises(MeasureError, match="wrk"):
        wrk_rate(output)


def test_iperf_rate_is_what_the_receiver_received() -> None:
    """Not what the sender sent: that may still lie in a buffer."""
    report = {
        "end": {
            "sum_sent": {"bits_per_second": 3e10},
            "sum_received": {"bits_per_second": 2.5e10},
        }
    }
    assert 25.0 == iperf_gbits(json.dumps(report))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ('{"error": "unable to connect to server"}', "unable to connect"),
        ("{}", "no result"),
        ("iperf3: not found", "no result"),
        ("", "no result"),
    ],
)
def test_iperf_error_is_no_result(output: str, reason: str) -> None:
    """iperf3's own words are passed on where it has any."""
    with pytest.raises(MeasureError, match=reason):
        iperf_gbits(output)
