"""Run folders: one run each, one process at a time, nothing of anybody's overwritten."""

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import tiny_model, tiny_run

from reformer_lab.errors import UserError
from reformer_lab.training import run_folder
from reformer_lab.training.run_folder import LOCK, RunFolder, differences, final_event, read_config_file

HOLDER = """
import sys, time
from pathlib import Path
from reformer_lab.locks import take_lock
take_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_configuration_comes_back(tmp_path: Path) -> None:
    for _ in range(2):
        with RunFolder(tmp_path / "new" / "run", tiny_run()) as folder:
            folder.claim("abc")
            assert folder.final() is None
    recorded = read_config_file(tmp_path / "new" / "run")
    assert recorded["digest"] == tiny_run().digest()
    assert recorded["data_fingerprint"] == "abc"
    assert not (tmp_path / "new" / "run" / LOCK).exists()


def test_a_folder_made_for_a_run_that_never_began_goes_again(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "made", tiny_run()):
        assert (tmp_path / "made" / "environment.json").exists()
    assert not (tmp_path / "made").exists()

    (tmp_path / "found").mkdir()
    with RunFolder(tmp_path / "found", tiny_run()):
        pass
    assert (tmp_path / "found").is_dir()


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, tiny_run()) as folder:
        folder.claim("abc")
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"another configuration \(model.num_hashes is 2 there, 4 here; steps is 8"):
        RunFolder(tmp_path, tiny_run(model=tiny_model(num_hashes=4), steps=9))
    assert content(tmp_path) == before


def test_other_data_are_refused(tmp_path: Path) -> None:
    with RunFolder(tmp_path, tiny_run()) as folder:
        folder.claim("abc")
        with pytest.raises(UserError, match="data have changed"):
            folder.claim("abd")


@pytest.mark.parametrize("name", ["notes.txt", "model", "metrics.jsonl"])
def test_foreign_files_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"not empty and holds no run .{name}"):
        RunFolder(tmp_path, tiny_run())
    assert content(tmp_path) == {name: b"mine"}


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"config": 1}'])
def test_a_foreign_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        RunFolder(tmp_path, tiny_run())
    assert content(tmp_path) == {"config.json": text.encode()}


def test_a_file_or_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "file", tiny_run())
    with pytest.raises(UserError, match=r"cannot write .*: Not a directory"):
        RunFolder(tmp_path / "file" / "run", tiny_run())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(UserError, match="Permission denied"):
        RunFolder(tmp_path / "run", tiny_run())
    tmp_path.chmod(0o755)


def test_an_unwritable_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(run_folder, "take_lock", refuse)
    with pytest.raises(UserError, match=r"Read-only file system; choose another folder with --output"):
        RunFolder(tmp_path, tiny_run())


def test_what_a_kill_left_at_the_very_start_is_no_foreign_file(tmp_path: Path) -> None:
    for name in (LOCK, "environment.json", ".tmp-17-config.json"):
        (tmp_path / name).write_text("")
    with RunFolder(tmp_path, tiny_run()) as folder:
        folder.claim("abc")


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / LOCK)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\S+: wait for it, or choose another --output"
        named = f"in use by process {holder.pid} on {re.escape(platform.node())} {since}"
        with pytest.raises(UserError, match=named):
            RunFolder(tmp_path, tiny_run())
        assert not (tmp_path / "config.json").exists()
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert (tmp_path / LOCK).exists()  # the dead process could not remove it
    with RunFolder(tmp_path, tiny_run()):
        assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()} on ")


def test_a_failed_start_gives_the_lock_back(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for _ in range(2):
        with pytest.raises(UserError, match="not the configuration of a run"):
            RunFolder(tmp_path, tiny_run())
    (tmp_path / "config.json").unlink()
    with RunFolder(tmp_path, tiny_run()):
        pass


def test_final_event(tmp_path: Path) -> None:
    assert final_event(tmp_path) is None
    lines = [{"event": "train", "step": 1}, {"event": "final", "step": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert final_event(tmp_path) == lines[1]
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]) + '\n{"event": "fin')
    assert final_event(tmp_path) is None


def test_no_run_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run folder"):
        read_config_file(tmp_path / "nowhere")


def test_differences_are_few_and_named() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}
    assert differences(old, old) == []
    assert differences(old, {"a": 1, "b": {"c": 5, "d": 3}, "f": 6}) == [
        "b.c is 2 there, 5 here", "e is 4 there, None here", "f is None there, 6 here"]
    assert len(differences({"a": 1, "b": 1, "c": 1, "d": 1}, {})) == 3
