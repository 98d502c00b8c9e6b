"""`reformer-lab generate`, from a trained run to a text."""

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from reformer_lab.cli.main import main
from reformer_lab.data.byte_text import decode, encode
from reformer_lab.evaluation.generate import generate
from reformer_lab.models.config import ReformerConfig
from reformer_lab.models.language_model import ReformerLM

TINY = ["--steps", "3", "--batch-size", "2", "--eval-limit", "2", "--checkpoint-every", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on a text."""
    folder = tmp_path_factory.mktemp("runs")
    text = "It was a dark and stormy night; the reformers sorted their tokens. é\n"
    (folder / "novel.txt").write_text(text * 300, encoding="utf-8")
    call = ["train", "--corpus", str(folder / "novel.txt"), "--preset", "cpu_tiny", "--length", "32", *TINY]
    assert main([*call, "--output", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def duplication(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on symbols that are no text."""
    folder = tmp_path_factory.mktemp("runs") / "symbols"
    call = ["train", "--preset", "duplication_cpu", "--model.d-model", "16", "--model.d-ff", "16", *TINY]
    assert main([*call, "--output", str(folder)]) == 0
    return folder


def output(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    capsys.readouterr()
    assert main(["generate", *map(str, words)]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--greedy"], {"greedy": True}),
        (["--temperature", "0.8", "--top-k", "40", "--top-p", "0.9", "--seed", "3"],
         {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 3}),
        (["--num-hashes", "8", "--seed", "1"], {"num_hashes": 8, "seed": 1}),
        (["--num-beams", "3", "--length-penalty", "0.6"], {"num_beams": 3, "length_penalty": 0.6}),
        (["--end-token", "104", "--precision", "bf16"], {"end_token": 104, "precision": "bf16"}),
    ],
    ids=["greedy", "drawn", "rounds", "beams", "ended"],
)  # fmt: skip
def test_the_text_is_that_of_generate(
    run: Path, options: list[str], arguments: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ReformerLM.from_pretrained(run / "model")
    prompt = encode("It wäs ")
    (found,) = generate(model, [prompt], length=25, **arguments)
    assert output(capsys, run, "--prompt", "It wäs ", "--length", "25", *options) == decode(prompt + found.tokens) + "\n"
    ids = output(capsys, run, "--prompt-tokens", " ".join(map(str, prompt)), "--length", "25", *options)
    assert ids == " ".join(map(str, prompt + found.tokens)) + "\n"


def test_of_a_model_folder_and_of_an_unfinished_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "night", "--length", "9"]
    assert output(capsys, run / "model", *words) == output(capsys, run, *words)
    shutil.copytree(run, tmp_path / "unfinished")
    shutil.rmtree(tmp_path / "unfinished" / "model")
    metrics = tmp_path / "unfinished" / "metrics.jsonl"
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["generate", str(tmp_path / "unfinished"), *words]) == 0
    assert "unfinished, at step" in capsys.readouterr().err


def test_the_length_left_out_is_what_fits(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = output(capsys, run, "--prompt-tokens", "70 71", "--greedy").split()
    assert len(ids) == ReformerLM.from_pretrained(run / "model").config.max_length


def test_symbols_that_are_no_text(duplication: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(output(capsys, duplication, "--prompt-tokens", "0 3 7, 9", "--length", "5").split()) == 9
    assert main(["generate", str(duplication), "--prompt", "night"]) == 2
    assert "are not text (duplication); give --prompt-tokens" in capsys.readouterr().err
    assert main(["generate", str(duplication / "model"), "--prompt", "night"]) == 2
    assert "does not say what its 128 tokens mean" in capsys.readouterr().err


class Screen(io.StringIO):
    """What a terminal is sent, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes.append(text)
        return super().write(text)


def test_on_a_terminal_text_comes_in_whole_characters_without_commands_to_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = encode("a€\x1b[2J\n")
    monkeypatch.setattr("reformer_lab.evaluation.generate.stream", lambda *_, **__: ([token] for token in new))
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["generate", str(run), "--prompt", "é", "--length", "9"]) == 0
    assert [text for text in screen.writes if text] == ["é", "a", "€", "\ufffd", "[", "2", "J", "\n", "\n"]


def test_output_that_cannot_hold_a_character(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    assert main(["generate", str(run), "--prompt", "é", "--length", "1", "--end-token", "3"]) == 0
    assert raw.getvalue().startswith(b"?")


def test_a_model_of_more_tokens_than_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder alone does not say that they are bytes, and a wrong guess would print nonsense."""
    config = ReformerConfig(vocab_size=320, d_model=8, d_ff=8, num_layers=1, num_heads=1, d_head=8, max_length=16)
    ReformerLM(config).save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "--prompt", "night"]) == 2
    assert "320 tokens" in capsys.readouterr().err
    assert len(output(capsys, tmp_path, "--prompt-tokens", "319 3").split()) == 16


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "either --prompt TEXT or --prompt-tokens"),
        (["--prompt", "a", "--prompt-tokens", "3"], "either --prompt TEXT or --prompt-tokens"),
        (["--prompt", ""], "--prompt is empty"),
        (["--prompt-tokens", " "], "--prompt-tokens is empty"),
        (["--prompt-tokens", "3 x"], "'3 x' must hold whole numbers"),
        (["--prompt-tokens", "3 258"], "token 258 of prompt 0"),
        (["--prompt", "a", "--temperature", "0"], "temperature=0.0"),
        (["--prompt", "a", "--greedy", "--top-p", "0.5"], "top_p=0.5 beside greedy"),
        (["--prompt", "a", "--top-p", "1.2"], "top_p=1.2"),
        (["--prompt", "a", "--num-beams", "2", "--top-k", "3"], "num_beams=2"),
        (["--prompt", "a" * 200], "max_length=128"),
        (["--prompt", "a", "--length", "128"], "at most 127"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_named(
    run: Path, words: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["generate", str(run), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert complaint in captured.err


def test_no_folder_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    assert "is no run folder" in capsys.readouterr().err

