"""What people see of a run."""

import io
from typing import Any

import pytest

from reformer_lab.training import display as module
from reformer_lab.training.display import Display, duration, size

START = {"event": "start", "data": "novel.txt", "unit": "byte", "splits": {"train": 9000, "test": 500},
         "parameters": 1234, "device": "cpu", "step": 0, "steps": 3, "output": "run"}
STEP = {"event": "step", "step": 1, "loss": 1.0, "bits": 1.4427, "tokens_per_second": 2048.0, "seconds_left": 75.0,
        "peak_memory_bytes": 512_000_000}
EVAL = {"event": "eval", "step": 2, "split": "validation", "name": "own", "loss": 1.0, "bits": 1.4427,
        "accuracy": 0.5, "targets": 8}
SCORING = {**EVAL, "event": "scoring", "total": 16}
FINAL = {"event": "final", "step": 3, "seconds": 3700.0, "parameters": 1234, "evaluations": {}, "stopped_early": True}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*events: dict[str, Any], stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    with Display(3, stream=stream) as display:
        for event in events:
            display(event)
    return stream.getvalue()


def test_plain_lines() -> None:
    text = shown(START, STEP, SCORING, EVAL, FINAL)
    assert text.splitlines() == [
        "novel.txt; train 9,000 bytes; test 500 bytes",
        "1,234 parameters on cpu, 3 steps",
        "step 1/3  loss 1.0000  1.4427 bits per byte  2,048 tokens/s  1:15 left  peak 512 MB",
        "step 2: validation 1.4427 bits per byte, accuracy 50.00 %",
        "finished: 3 steps, stopped early, 1:01:40",
    ]
    assert "\x1b" not in text


def test_plain_lines_are_few_but_the_last_is_there() -> None:
    text = shown(STEP, {**STEP, "step": 2}, {**STEP, "step": 3})
    assert [line.split()[1] for line in text.splitlines()] == ["1/3", "3/3"]


def test_plain_lines_come_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PLAIN_SECONDS", 0.0)
    assert "evaluating on validation (own): 8 of 16 bytes  1.4427 bits per byte" in shown(SCORING)


def test_resumed_runs_say_so() -> None:
    assert "going on after step 2" in shown({**START, "step": 2})


def test_a_terminal_gets_a_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    text = shown(START, STEP, EVAL, stream=Terminal())
    assert "\x1b[" in text
    assert "2,048 tokens/s" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_names_cannot_command_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    bad = "x\x1b]0;owned\x07"
    text = shown({**START, "data": bad}, {"event": "note", "text": bad}, {**SCORING, "name": bad, "targets": 16},
                 stream=Terminal() if terminal else io.StringIO())
    assert text.count(r"x\x1b]0;owned\x07") >= 3
    assert "\x1b]" not in text
    assert "\x07" not in text


def test_brackets_are_text_and_accuracy_may_be_missing() -> None:
    assert shown({"event": "note", "text": "[bold]x[/bold]"}) == "[bold]x[/bold]\n"
    assert shown({**EVAL, "accuracy": None}) == "step 2: validation 1.4427 bits per byte\n"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3599, "59:59"),
                                               (7384, "2:03:04")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(512_400_000, "512 MB"), (3_140_000_000, "3.1 GB")])
def test_size(number: float, text: str) -> None:
    assert size(number) == text
