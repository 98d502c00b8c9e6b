"""scripts/gpu.sh without a GPU: a stand-in for Python says what it would have done."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "gpu.sh"
STAND_IN = """\
#!/usr/bin/env bash
echo "$@" >>"$CALLS"
if [[ "$*" == *"--lengths $FAILS_AT"* ]]; then exit 3; fi
while [ $# -gt 0 ]; do
  if [ "$1" = --lengths ]; then length=$2; fi
  if [ "$1" = --csv ]; then printf 'length,median\\n%s,1\\n' "$length" >"$2"; fi
  shift
done
"""


def test_goes_on_where_it_stopped(tmp_path: Path) -> None:
    stand_in, calls, folder = tmp_path / "python", tmp_path / "calls", tmp_path / "results"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def run(fails_at: str) -> tuple[int, list[str]]:
        calls.write_text("")
        variables = {"PYTHON": str(stand_in), "CALLS": str(calls), "FAILS_AT": fails_at, "LENGTHS": "1k 2k 4k"}
        process = subprocess.run(["bash", SCRIPT, folder], env=os.environ | variables, capture_output=True, check=False)
        return process.returncode, calls.read_text().splitlines()

    code, first = run(fails_at="2k")
    assert code == 3
    assert (folder / "attention.csv").read_text() == "length,median\n1k,1\n"
    code, second = run(fails_at="nowhere")
    assert code == 0
    assert (folder / "attention.csv").read_text() == "length,median\n1k,1\n2k,1\n4k,1\n"
    assert "test_lsh_triton.py" in first[1]
    assert "--lengths 2k" in second[0]
    assert not any("--lengths 1k" in call or "test_lsh_triton.py" in call for call in second)
    assert second[-1].endswith(f"reproduce --scale gpu --only table2,speed,memory --minutes 8 --output {folder}/gpu")
    assert run(fails_at="nowhere") == (0, [])


def test_the_suite_is_called_again_until_nothing_is_left(tmp_path: Path) -> None:
    stand_in, calls, folder = tmp_path / "python", tmp_path / "calls", tmp_path / "results"
    stand_in.write_text(STAND_IN.replace('"--lengths $FAILS_AT"', '"reproduce --scale gpu"'))
    stand_in.chmod(0o755)
    variables = {"PYTHON": str(stand_in), "CALLS": str(calls), "LENGTHS": "1k", "FAILS_AT": "", "MINUTES": "5",
                 "EXPERIMENTS": "depth", "DATA": "my texts"}
    for _ in range(2):
        process = subprocess.run(["bash", SCRIPT, folder], env=os.environ | variables, capture_output=True, check=False)
        assert process.returncode == 3
    whole = calls.read_text().splitlines()
    assert [call for call in whole if "reproduce" in call] == whole[-2:]
    assert whole[-1].endswith(f"--only depth --minutes 5 --output {folder}/gpu --data my texts")
