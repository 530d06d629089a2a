"""What http's clients send and understand, and what is read out of wrk and the kernel."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from support import wait_for

from benchmarks.http_client import Way, content_length
from benchmarks.http_measures import (
    COST,
    FIGURES,
    Measure,
    cost,
    tree_seconds,
    wrk_latency_us,
    wrk_seconds,
)
from benchmarks.http_peers import OURS, policy
from benchmarks.http_report import Results, as_json, as_text
from benchmarks.measures import MeasureError
from benchmarks.peers import DIRECT
from sidecar.config import load_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WRK = """\
Running 1s test @ http://127.0.0.1:28000/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.58ms  335.24us   5.98ms   88.14%
    Req/Sec    12.05k   631.45    13.10k    70.00%
  Latency Distribution
     50%  634.00us
     75%  820.00us
     90%    1.07ms
     99%    2.59ms
  12054 requests in 1.01s, 1.75MB read
Requests/sec:  11934.70
Transfer/sec:      1.73MB
"""


def test_requests_for_a_proxy_have_the_absolute_form() -> None:
    """RFC 9112 §3.2.2; and the authority form for a tunnel, the origin form within it."""
    way = Way(1, "localhost:2")
    assert way.get("/", close=False) == (
        b"GET http://localhost:2/ HTTP/1.1\r\nHost: localhost:2\r\n\r\n"
    )
    assert b"\r\nConnection: close\r\n" in way.get("/", close=True)
    assert way.connect() == b"CONNECT localhost:2 HTTP/1.1\r\nHost: localhost:2\r\n\r\n"
    assert way.get_within("/big").startswith(b"GET /big HTTP/1.1\r\n")


def test_length_is_the_answers() -> None:
    """Whatever the field's case; without one, the body ends with the connection."""
    assert 3 == content_length(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 3")
    assert content_length(b"HTTP/1.0 200 OK\r\nVia: me") is None


def test_another_status_is_no_answer() -> None:
    """A proxy that refuses quickly is not a quick one."""
    with pytest.raises(ConnectionError, match="503"):
        content_length(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3")


def test_wrk_times_come_in_any_unit() -> None:
    """Percentiles in µs, the duration in seconds."""
    assert 634.0 == wrk_latency_us(WRK, 50)
    assert 2590.0 == wrk_latency_us(WRK, 99)
    assert 1.01 == wrk_seconds(WRK)


@pytest.mark.parametrize("read", [lambda text: wrk_latency_us(text, 99), wrk_seconds])
def test_wrk_without_times_is_no_result(read: Callable[[str], float]) -> None:
    """As where it could not connect."""
    with pytest.raises(MeasureError, match="wrk printed no"):
        read("unable to connect")


def test_processor_time_is_one_requests_or_100_mib() -> None:
    """µs for the first, ms for the second, whatever else the processor did."""
    assert 100.0 == cost(Measure.CLOSE, 0.5, 5_000)
    assert pytest.approx(419.4, abs=0.1) == cost(Measure.GET, 0.5, 1)


def test_processor_time_includes_children() -> None:
    """A proxy whose children work is as busy as they are."""
    child = os.fork()
    if not child:
        while True:
            pass
    try:
        before, own = tree_seconds(os.getpid()), time.process_time()

        def spent() -> float:
            return tree_seconds(os.getpid()) - before - (time.process_time() - own)

        # It may have to wait for a processor.
        wait_for(lambda: spent() > 0.03)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_our_rules_are_valid_and_allow_the_origin(host: str, tmp_path: Path) -> None:
    """By name or by address; they are rules as somebody has them, not none."""
    path = tmp_path / "sidecar.toml"
    path.write_text(policy(host))
    loaded = load_file(str(path)).policy
    assert host in {str(rule) for rule in loaded.allow}
    assert len(loaded.allow) > 1


def test_report_has_all_columns_and_what_is_missing() -> None:
    """A peer without tunnels has a gap there; what isn't installed is said."""
    results = Results(rounds=1, seconds=1, host="localhost", base="squid")
    results.chosen = [Measure.CONNECT]
    results.names = [DIRECT, OURS, "squid", "twisted.web"]
    rate = FIGURES[Measure.CONNECT][0]
    results.samples.add(rate, OURS, 3000.0)
    results.samples.add(rate, "squid", 2000.0)
    results.samples.add(COST[Measure.CONNECT], OURS, 100.0)
    results.missing.append("without mitmdump: it is not there")
    text = as_text(results)
    assert "| 3,000 (1.50x) | 2,000 |           - |" in text
    assert "sidecar / squid: connect 1.50\n" in text
    assert "without mitmdump: it is not there\n" in text
    figures = as_json(results)["figures"]
    assert isinstance(figures, dict)
    assert {"samples": (3000.0,), "median": 3000.0, "ratio": 1.5} == figures["connect"][OURS]
