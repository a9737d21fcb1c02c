"""All tortures, one after another, and their figures in one table: `make torture`, or less, `TORTURE=0.1 make torture`.

    python -m tests.torture --scale 0.1 [--only kills]

Exit code 1 where anything was lost, hung for more than half a minute, or ended in a traceback or as "internal".
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.torture.figures import SEVERE

_ROOT = Path(__file__).resolve().parent.parent.parent
# What `children.torture` calls how a child ended.
_OUTCOMES = {
    "read": "went_on", "refused": "refused", "hang": "hangs", "internal": "internal", "crash": "internal",
    "memory": "internal",
}  # fmt: skip
_COLUMNS = ("cases", "refused", "went_on", *SEVERE)


def list_tortures(scale: float) -> dict[str, list[str]]:
    """Modules of this package, and the options that they are run with at a share of their full length."""

    def count(number: int) -> list[str]:
        return ["--count", str(max(1, round(scale * number)))]

    return {
        "kills": count(240),
        "faults": ["--share", str(min(1.0, scale))],
        "meetings": count(10),
        "damaged_files": count(2000),
        "damaged_pictures": count(2000),
        "hostile_models": [],
    }


def run(name: str, options: Sequence[str]) -> Counter[str]:
    """The figures of a torture; what it says passes by."""
    command = [sys.executable, "-m", f"tests.torture.{name}", *options]
    found: Counter[str] = Counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            found += read_figures(line)
    if process.returncode and not any(found[each] for each in SEVERE):
        found["internal"] += 1  # it ended before it could say what was wrong
    return found


def read_figures(line: str) -> Counter[str]:
    """What a line of a torture counts: JSON of `Figures`, or a sentence with numbers; nothing of other lines."""
    if line.startswith("{"):
        return Counter(json.loads(line))
    if told := re.search(r"^\S+: (\d+): (.*);", line):
        found = Counter(cases=int(told[1]))
        for number, outcome in re.findall(r"(\d+) (\w+)", told[2]):
            found[_OUTCOMES[outcome]] += int(number)
        return found
    if told := re.search(r"^(\d+) commands on \d+ hostile models: (\d+) wrong", line):
        cases, wrong = int(told[1]), int(told[2])
        return Counter(cases=cases, refused=cases - wrong, internal=wrong)
    return Counter()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the cases")
    parser.add_argument("--only", action="append", default=[], help="one torture; repeat it for more")
    given = parser.parse_args()
    began, rows = time.monotonic(), {}
    for name, options in list_tortures(given.scale).items():
        if not given.only or name in given.only:
            print(f"{name} {' '.join(options)}", flush=True)
            rows[name] = run(name, options)
    total = {column: sum(row[column] for row in rows.values()) for column in _COLUMNS}
    titles = ("torture", *(column.replace("_", " ") for column in _COLUMNS))
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for name, row in {**rows, "all": total}.items():
        print("| " + " | ".join([name, *(str(row[column]) for column in _COLUMNS)]) + " |")
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if any(total[each] for each in SEVERE) else 0


if __name__ == "__main__":
    sys.exit(main())
