"""SIGKILL in a suite, of the engine, a worker or both: the next call goes on and ends with the bits of an untouched suite."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reformer_lab.reporting.records import read_results, read_suite

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

from tiny_runs import TIMES, assert_same_bits


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(part) for name, part in value.items() if name not in TIMES}
    return [without_times(part) for part in value] if isinstance(value, (list, tuple)) else value


@pytest.mark.slow
def test_sigkill_at_twenty_instants(tmp_path: Path) -> None:
    call = [sys.executable, str(Path(__file__).with_name("killing_suites.py")), str(tmp_path)]
    result = subprocess.run(call, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    outcome = json.loads(result.stdout)
    assert len(outcome["killed"]) == 20
    # The n-th call of a step is drawn from those of one run; in another the n-th need not come, and that engine ends by itself.
    ends = [(code, 7 if who == "worker" else -signal.SIGKILL) for who, _, code in outcome["killed"]]
    assert all(code in (expected, 0) for code, expected in ends), outcome["killed"]
    assert sum(code == expected for code, expected in ends) >= 16, outcome["killed"]
    assert outcome["last"] == 0, result.stderr

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert read_suite(whole).arms == read_suite(killed).arms
    expected, found = read_results(whole), read_results(killed)
    assert set(expected) == set(found)
    for arm, record in expected.items():
        assert found[arm].finished
        assert without_times(dict(record.header)) == without_times(dict(found[arm].header))
        assert without_times(record.events) == without_times(found[arm].events)
        assert_same_bits(whole / "runs" / arm, killed / "runs" / arm)
    for folder in ("", "results", "logs"):
        names = [sorted(path.name for path in (suite / folder).iterdir()) for suite in (whole, killed)]
        assert names[0] == names[1]
