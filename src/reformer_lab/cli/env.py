"""`reformer-lab env`: what a bug report or a comparison of results needs to know."""

import argparse

HELP = """\
Print versions, machine, threads, attention backends and the cache folder.

example:
  reformer-lab env
"""


def main(argv: list[str]) -> int:
    """Print the environment, one fact a line."""
    parser = argparse.ArgumentParser(prog="reformer-lab env", description=HELP,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)

    from reformer_lab.folders import cache_folder
    from reformer_lab.ops.lsh_attention import BACKENDS, unusable
    from reformer_lab.training.display import size
    from reformer_lab.training.tracking import environment

    facts = environment()
    rows = {
        "reformer-lab": f"{facts['reformer_lab']}, commit {facts['commit'] or 'unknown (not a checkout)'}",
        "python": facts["python"],
        **facts["packages"],
        "system": f"{facts['system']} {facts['machine']}",
        "cpu": f"{facts['cpu']}, {facts['cpu_count']} cores, {size(facts['memory_bytes'])} of memory",
        "torch threads": facts["threads"],
        "gpus": ", ".join(facts["gpus"]) or "none",
        "lsh_attention": "backends " + ", ".join(_backend(name, unusable(name)) for name in BACKENDS),
        "cache": cache_folder(),
    }
    for name, value in rows.items():
        print(f"{name:<14} {value}")
    return 0


def _backend(name: str, why_not: str | None) -> str:
    return name if why_not is None else f"{name} (unusable: {why_not})"
