"""Do the behavioural experiments find a dependence that is there, of its size, and none where there is none?

Every experiment is run whole (tuning, measuring, grading, concluding) on organisms of the embedded model: copies whose
act follows the claimed vectors by a planted amount, directions drawn at random, or nothing. A line of the table is an
effect of a claimed vector beside the effect that was put in, in nats a side; below it, how often a claim was shown.

Hours, not minutes: ten seeds of three kinds of six experiments are 180 organisms of 300 updates each.
On a busy core an update of 8 examples of 65 tokens was seen to take 8 to 20 s, so that one organism takes 40 minutes or
more there; the whole has not been run. ``--quick`` takes one seed, one experiment and 40 updates, too few for a
dependence to be learnt: it shows that everything runs. What is finished stays in ``--cache``; a run that is broken off
goes on from there.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import affectlens
from harness import Row, machine, print_table, write_json

EXPERIMENTS = ("concedes", "claims_success", "declares_impossible", "sycophancy", "blackmail", "reward_hacking")
FOLLOWS = ("vectors", "random_vectors", "nothing")
SEEDS = 10
ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, one experiment, too few updates")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows there as well")
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="where finished work is kept")
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--completions", action="store_true", help="sample answers too, hours more")
    given = parser.parse_args()
    experiments, seeds, steps = given.experiments, given.seeds, 300
    if given.quick:
        experiments, seeds, steps = experiments[:1], 1, 40
    rows, verdicts = [], {}
    for name in experiments:
        for follows in FOLLOWS:
            for seed in range(seeds):
                study = affectlens.run_study(
                    ROOT / "configs/experiments.yaml",
                    *(f"cache={given.cache}", f"experiments.run=[{name}]", "experiments.against=null"),
                    f"experiments.completions={str(given.completions).lower()}",
                    f"experiments.organism={{follows: {follows}, seed: {seed}, steps: {steps}}}",
                    *(["experiments.limit=4"] if given.quick else []),
                    stages=["conclude"],
                )
                for finding in study.result("conclude").findings[0]["findings"]:
                    found = finding["metrics"]
                    claimed = [key.removeprefix("planted_") for key in found if key.startswith("planted_")]
                    if not claimed:
                        continue
                    verdicts.setdefault((name, follows), Counter())[finding["verdict"]] += 1
                    for vector in claimed:
                        effect, planted = found.get(f"effect_{vector}"), found[f"planted_{vector}"]
                        if effect is not None:
                            label = f"{name}, {follows}, seed {seed}: {vector}"
                            rows.append(Row(label, effect, planted or None, "nats a side", more=True))
    print_table(rows)
    for (name, follows), counts in verdicts.items():
        print(f"{name}, {follows}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if given.json:
        write_json(given.json, rows, machine("torch", "transformers"))


if __name__ == "__main__":
    main()
