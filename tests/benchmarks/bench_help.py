"""P11: how long `penstock --help` takes above an interpreter that does nothing."""

import subprocess
import sys
from pathlib import Path

from tests.benchmarks.measure import Result, interleaved, seconds

PENSTOCK = Path(sys.executable).with_name("penstock")


def measure(quick):
    def run(*argv):
        return 1000 * seconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL))

    found = interleaved(
        {"ours": lambda: run(PENSTOCK, "--help"), "floor": lambda: run(sys.executable, "-c", "pass")},
        5 if quick else 21,
    )
    return [
        Result(
            "P11",
            "`penstock --help`",
            found["ours"][1:],
            found["floor"][1:],
            "python -c pass",
            "ms",
            at_most=150,
            compared="difference",
        )
    ]
