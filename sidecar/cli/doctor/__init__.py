"""`sidecar doctor`: what works on this machine, each thing really tried.

    (here)    the options; what happens in which order
    checking  which checks there are
    kernel    those that are tried in a throw-away namespace
    host      those of the host's own limits and services
    findings  what a check is, and what it found
    trial     trying something in a process of its own
    showing   lines and JSON

``--leak-test`` is `sidecar.cli.leak_test`.
"""

from __future__ import annotations

import argparse

__all__ = ["add_arguments", "run"]

_DESCRIPTION = """\
Try everything that sidecar needs of this machine: each in a throw-away namespace, so
that nothing is changed and nothing left behind. A line each: whether it works, what it is
needed for, and the one command that mends it.

With --leak-test: run a command in `sidecar exec` that tries every known way out, against
listeners placed outside, in a namespace of the test's own.
"""
_EPILOG = """\
exit status: 0 if `sidecar exec` and twistd sidecar's transparent listeners can work here,
1 if one of them can't. With --leak-test: 0 if nothing got out, 1 if something did, or
could not be tried
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--leak-test", action="store_true", help="try every known way out of sidecar exec"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything, or try every way out.

    Returns:
        The exit status.
    """
    if arguments.leak_test:
        from sidecar.cli import leak_test

        return leak_test.run(json=arguments.json)
    from sidecar.cli.doctor.checking import checks, examine
    from sidecar.cli.doctor.findings import Form, works
    from sidecar.cli.doctor.showing import as_json, line, verdict

    results = []
    for result in examine(checks()):
        results.append(result)
        if not arguments.json:
            print(line(result), flush=True)
    print(as_json(results) if arguments.json else f"\n{verdict(results)}")
    return 0 if all(works(results, form) for form in Form) else 1
