"""``python -m tests.accuracy [--json]``."""

from __future__ import annotations

import argparse
import json
import sys

from tests.accuracy.numbers import document
from tests.accuracy.writing import write_all


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.accuracy", description="Write docs/accuracy.md.")
    parser.add_argument("--json", action="store_true", help="print the numbers, and write nothing")
    if parser.parse_args().json:
        json.dump(document(), sys.stdout, indent=1)
        sys.stdout.write("\n")
    else:
        write_all()


if __name__ == "__main__":
    main()
