"""`reformer-lab list`: what can be run, and how long it takes."""

import argparse

HELP = """\
List the experiments with their claims and scales, the claims, and the presets of `train`. Imports no torch: answers at once.

examples:
  reformer-lab list
  reformer-lab list --claims
"""


def main(argv: list[str]) -> int:
    """Print the experiments, then the claims or a hint at them, then the presets."""
    parser = argparse.ArgumentParser(prog="reformer-lab list", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--claims", action="store_true", help="the paper's claims in full")
    arguments = parser.parse_args(argv)

    from reformer_lab.experiments.claim import SCALE_NOTES, SCALES
    from reformer_lab.experiments.claims import CLAIMS
    from reformer_lab.experiments.registry import EXPERIMENTS, MINUTES
    from reformer_lab.models.presets import PRESETS

    if arguments.claims:
        for claim in CLAIMS:
            print(f"{claim.id:<4} {claim.statement}\n     {claim.source}; paper: {claim.paper}")
        return 0
    tested = {claim.id for experiment in EXPERIMENTS.values() for claim in experiment.claims}
    print(f"{'experiment':<12} {'claims':<11} " + " ".join(f"{scale:>15}" for scale in SCALES) + "   runs, expected time")
    for name, experiment in EXPERIMENTS.items():
        claims = ",".join(claim.id for claim in experiment.claims) or "none"
        runs = {scale: len(experiment.arms(scale)) for scale in SCALES}
        cells = [f"{number}, {expected_time(MINUTES[name][scale])}" if number else "none" for scale, number in runs.items()]
        print(f"{name:<12} {claims:<11} " + " ".join(f"{cell:>15}" for cell in cells) + f"   {experiment.title}")
    print("\nscales")
    for scale in SCALES:
        print(f"  {scale:<6} {SCALE_NOTES[scale]}")
    print("  Times: experiments run alone, up to small on 2 CPU cores, then on one GPU; a suite runs what they share once.")
    rest = ", ".join(claim.id for claim in CLAIMS if claim.id not in tested)
    print(f"\nclaims  C1 to {CLAIMS[-1].id}, in full with `reformer-lab list --claims`; not tested by any experiment: {rest}")
    print(f"presets {', '.join(PRESETS)}")
    print("\nrun     reformer-lab reproduce --scale quick [--only table2,speed]")
    return 0


def expected_time(minutes: float) -> str:
    """Return minutes as people write them: 20 s, 5 min, 2 h, 7 days."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    if minutes < 120:
        return f"{minutes:g} min"
    if minutes < 48 * 60:
        return f"{minutes / 60:.0f} h"
    return f"{minutes / 60 / 24:.0f} days"
