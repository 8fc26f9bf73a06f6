"""`python -m tests.fuzz --records 1000000 --seed 1` prints what became of so many fuzzed records.

The last line is one JSON object; the status is 1 when any promise broke.
"""

from __future__ import annotations

import argparse
import sys

import orjson

from tests.fuzz.run import FuzzResult, fuzz


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    result = fuzz(options.records, options.seed)
    show(result)
    return 0 if result.good else 1


def show(result: FuzzResult) -> None:
    for name, count in result.outcomes.most_common():
        print(f"{count:>10,}  {name}")
    for name, count in result.fields.most_common(20):
        print(f"{count:>10,}  dead letters for {name}")
    for defect in result.shown:
        print(defect)
    print(
        f"{result.records:,} records in {result.seconds:.0f} s, {result.defects} defects, {result.unaccounted} not "
        f"accounted for, {result.letters_missing} dead letters missing, {len(result.changed_controls)} controls changed"
    )
    facts = {"records": result.records, "outcomes": dict(result.outcomes), "dead_letters": sum(result.fields.values())}
    print(orjson.dumps({**facts, "defects": result.defects, "good": result.good}).decode())


if __name__ == "__main__":
    sys.exit(main())
