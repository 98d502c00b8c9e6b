"""`reformer-lab train` and `reformer-lab evaluate`, from a text file to a score."""

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reformer_lab.cli.main import main
from reformer_lab.cli.train import parse, run_config
from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig, ImagesConfig

SMALL = ["--preset", "cpu_tiny", "--length", "32", "--steps", "4", "--batch-size", "2", "--eval-every", "2",
         "--checkpoint-every", "2", "--eval-limit", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "novel.txt"
    path.write_text("It was a dark and stormy night; the reformers sorted their tokens. é\n" * 300, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs") / "novel"
    assert main(["train", "--corpus", str(text), "--output", str(folder), *SMALL]) == 0
    return folder


def unfinished(run: Path, folder: Path) -> Path:
    """A copy of the run as a kill would have left it before its end."""
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "model")
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:-1]))
    return folder


def test_train_says_what_it_does(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--corpus", str(text), *SMALL]) == 0
    out = capsys.readouterr().out
    folder = re.search(r"run folder: (runs/novel-[0-9a-f]{12})\n", out)
    assert folder is not None
    assert (tmp_path / folder[1] / "model" / "model.safetensors").exists()
    assert re.search(r"novel\.txt; train [\d,]+ bytes; validation 1,0\d\d bytes; test 1,0\d\d bytes", out)
    assert re.search(r"[\d,]+ parameters on cpu, 4 steps", out)
    assert re.search(r"step 2: validation \d\.\d+ bits per byte", out)
    assert f"next: reformer-lab evaluate {folder[1]} --split test" in out
    # The same call finds the same folder, and that nothing is left to do.
    assert main(["train", "--corpus", str(text), *SMALL]) == 0
    assert "finished: nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluate_scores_every_byte(run: Path, text: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    characters = text.read_text(encoding="utf-8")
    held_out = round(0.05 * len(characters))
    part = characters[-held_out:] if split == "test" else characters[-2 * held_out : -held_out]
    assert main(["evaluate", str(run), "--split", split, "--batch-size", "3"]) == 0
    out = capsys.readouterr().out
    assert f"{len(part.encode()):,} bytes scored" in out
    assert re.search(r"^\d\.\d{4} bits per byte, accuracy \d+\.\d\d %, loss \d\.\d{4} nats", out, re.MULTILINE)


def test_evaluate_options(run: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--num-hashes", "8", "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "finished at step 4, 8 hash rounds" in out
    assert "64 bytes scored" in out
    moved = tmp_path / "moved.txt"
    shutil.copy(text, moved)
    assert main(["evaluate", str(run), "--corpus", str(moved), "--limit", "1"]) == 0
    moved.write_text("another text\n" * 1000)
    assert main(["evaluate", str(run), "--corpus", str(moved)]) == 2
    assert "data have changed" in capsys.readouterr().err


def test_evaluate_takes_the_newest_checkpoint_that_is_whole(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = unfinished(run, tmp_path / "run")
    assert main(["evaluate", str(folder), "--limit", "1"]) == 0
    assert "unfinished, at step 4 of 4" in capsys.readouterr().out
    (folder / "checkpoints" / "4" / "model.safetensors").write_bytes(b"damaged")
    assert main(["evaluate", str(folder), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert "damaged" in out
    assert "unfinished, at step 2 of 4" in out
    shutil.rmtree(folder / "checkpoints")
    assert main(["evaluate", str(folder)]) == 2
    assert "no checkpoint yet" in capsys.readouterr().err


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a call that must fail as a user's mistake does; return what it says."""
    try:
        code = main(list(words))
    except SystemExit as error:
        code = error.code
    error_text = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in error_text
    return " ".join(error_text.replace("│", " ").split())


def test_another_configuration_is_not_overwritten(run: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    error = fails(capsys, "train", "--corpus", str(text), "--output", str(run), *SMALL, "--model.num-hashes", "8")
    assert "another configuration (model.num_hashes is 2 there, 8 here)" in error
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("words", "said"), [
    (["--corpus", "missing.txt"], "missing.txt"),
    (["--corpus", "."], "director"),
    (["--corpus", "empty"], "empty"),
    (["--corpus", "latin"], "UTF-8"),
    (["--corpus", "short"], "one window"),
    (["--length", "0"], "length=0"),
    (["--steps", "0"], "steps=0"),
    (["--batch-size", "4", "--accumulation", "3"], "accumulation=3"),
    (["--model.num-buckets", "7"], "num_buckets=7"),
    (["--model.axial-shape", "4", "4"], "axial_shape"),
    (["--length", "4096"], "max_length=128"),
    (["--model.vocab-size", "100"], "vocab_size=100"),
    (["--preset", "cpu_smal"], "cpu_small"),
    (["--nonsense", "3"], "--nonsense"),
    (["--preset", "duplication_cpu"], "the duplication task has none"),
    (["--preset", "imagenet64", "--length", "12000"], "--length 12000"),
    (["--corpus", "~nobody-of-this-name/x"], "~nobody-of-this-name"),
    (["--corpus", "x" * 300], "too long"),
    (["--steps", "many"], "many"),
    (["--output", "latin/run"], "latin/run: Not a directory"),
    (["--output", "latin"], "is a file"),
    (["--output", "."], "not empty and holds no run"),
])
def test_mistakes(
    words: list[str], said: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "latin").write_bytes("Résumé ".encode("latin-1") * 1000)
    (tmp_path / "short").write_bytes(b"short")
    error = fails(capsys, "train", "--corpus", str(text), "--output", "run", *SMALL, *words)
    assert said in error
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("words", "said"), [
    (["nowhere"], "nowhere is no run folder"),
    (["RUN", "--split", "train"], "train"),
    (["RUN", "--num-hashes", "0"], "num_hashes=0"),
    (["RUN", "--limit", "0"], "limit=0"),
    (["RUN", "--batch-size", "0"], "batch_size=0"),
    ([], "run"),
])
def test_mistakes_of_evaluate(words: list[str], said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in fails(capsys, "evaluate", *(str(run) if word == "RUN" else word for word in words)).lower()


@pytest.mark.slow
def test_ctrl_c_and_then_the_same_call(text: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "reformer_lab", "train", "--corpus", str(text), "--output", str(tmp_path / "run"),
            *SMALL, "--steps", "3000", "--log-every", "1"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while not process.stdout.readline().startswith("step "):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same call goes on from there" in out
    assert error == "reformer-lab: interrupted\n"
    saved = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "parameters" not in (line := process.stdout.readline()):
        assert process.poll() is None
    assert f"going on after step {saved}" in line
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_presets_bring_their_data() -> None:
    def data(*words: str) -> object:
        return run_config(parse(list(words))).data

    assert data("--corpus", "x.txt") == ByteCorpusConfig(path=str(Path("x.txt").resolve()), length=2048)
    assert data("--corpus", "enwik8", "--split-by", "bytes", "--length", "512") == ByteCorpusConfig(
        path="enwik8", split_by="bytes", length=512)
    assert data() == ByteCorpusConfig(length=2048)
    assert data("--preset=duplication_cpu") == DuplicationConfig(length=64)
    assert data("--preset", "imagenet64") == ImagesConfig()


def test_model_options_change_the_preset() -> None:
    run = run_config(parse(["--preset", "cpu_tiny", "--model.attention", "full", "lsh", "--model.num-buckets", "4", "4",
                            "--optimizer.clip-norm", "None", "--eval-limit", "None"]))
    assert run.model.attention == ("full", "lsh")
    assert run.model.num_buckets == (4, 4)
    assert run.model.d_model == 32
    assert run.optimizer.clip_norm is None
    assert run.eval_limit is None


def test_metrics_are_json_lines(run: Path) -> None:
    events = [json.loads(line)["event"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert events == ["eval", "train", "eval", "final"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, example in (("train", "reformer-lab train --corpus novel.txt"), ("evaluate", "--split test")):
        with pytest.raises(SystemExit) as raised:
            main([verb, "--help"])
        assert raised.value.code == 0
        out = capsys.readouterr().out
        assert "examples:" in out
        assert example in out
