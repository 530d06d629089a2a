"""Medians, ratios and the table of the benchmarks."""

from __future__ import annotations

from benchmarks.stats import Figure, Samples, percentile, rotated, table

RATE = Figure("rate", "rate/s", "more", 0)
DELAY = Figure("delay", "delay, µs", "less", 1)


def filled() -> Samples:
    samples = Samples()
    for value in (900.0, 1000.0, 5000.0):
        samples.add(RATE, "base", value)
    for value in (1500.0, 1200.0, 100.0):
        samples.add(RATE, "ours", value)
    return samples


def test_median_drops_the_slow_round() -> None:
    """One bad round moves neither the median nor the ratio."""
    samples = filled()
    assert 1200.0 == samples.median(RATE, "ours")
    assert 1.2 == samples.ratio(RATE, "ours", "base")


def test_what_was_not_measured_has_no_median_and_no_ratio() -> None:
    """A missing peer or base is None, not zero and not an error."""
    samples = filled()
    assert samples.median(DELAY, "ours") is None
    assert samples.ratio(RATE, "ours", "absent") is None
    assert samples.ratio(RATE, "absent", "base") is None
    assert () == samples.of(DELAY, "ours")


def test_a_base_of_zero_gives_no_ratio() -> None:
    """Nothing is divided by zero."""
    samples = Samples()
    samples.add(RATE, "base", 0.0)
    samples.add(RATE, "ours", 1.0)
    assert samples.ratio(RATE, "ours", "base") is None


def test_percentile_is_the_nearest_rank() -> None:
    """The smallest value that at least so many percent don't exceed."""
    assert 50 == percentile(range(1, 101), 50)
    assert 99 == percentile(range(1, 101), 99)
    assert 2 == percentile([1, 2, 3], 50)
    assert 7 == percentile([7], 99)


def test_each_round_begins_with_the_next_peer() -> None:
    """After as many rounds as peers, each has been first once."""
    assert ["a", "b", "c"] == rotated(["a", "b", "c"], 0)
    assert ["c", "a", "b"] == rotated(["a", "b", "c"], 2)
    assert ["a", "b", "c"] == rotated(["a", "b", "c"], 3)


def test_table_shows_medians_with_ratios_and_gaps() -> None:
    """A cell is the median with its ratio; the base has none; a gap is a hyphen."""
    expected = """\
|                            |          ours |  base |
| ---                        |          ---: |  ---: |
| rate/s (more is better)    | 1,200 (1.20x) | 1,000 |
| delay, µs (less is better) |             - |     - |"""
    assert expected == table(filled(), [RATE, DELAY], ["ours", "base"], "base")
