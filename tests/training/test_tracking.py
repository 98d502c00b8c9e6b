"""Metrics and environment, as files."""

import getpass
import json
import platform
import resource
from pathlib import Path

import pytest
import torch
from tiny_runs import tiny_model

from reformer_lab.errors import UserError
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.training.tracking import MetricsLog, environment, parameter_count, peak_memory_bytes, read_events


def test_goes_on_at_a_position(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.append({"event": "train", "step": 1})
    log.sync()
    position = log.position()
    log.append({"event": "train", "step": 2})
    log.close()
    log = MetricsLog(path, position)
    assert [event["step"] for event in read_events(path)] == [1]
    log.append({"event": "train", "step": 3})
    log.close()
    assert [event["step"] for event in read_events(path)] == [1, 3]


def test_a_refused_line_is_not_written_again_by_closing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"event": "train", "step": 0})
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        with pytest.raises(UserError, match=r"metrics\.jsonl: File too large; make room there and call again"):
            log.append({"event": "train", "step": 1})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [event["step"] for event in read_events(tmp_path / "metrics.jsonl")] == [0]


def test_a_file_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match="shorter than its checkpoint says"):
        MetricsLog(path, 100)
    assert path.read_text() == "{}\n"


def test_reads_what_is_whole(tmp_path: Path) -> None:
    assert read_events(tmp_path / "missing") == []
    (tmp_path / "cut").write_bytes(b'{"event": "a"}\n\xff\n[1]\n{"event": "b"}\n{"eve')
    assert [event["event"] for event in read_events(tmp_path / "cut")] == ["a", "b"]


def test_not_a_number_never_gets_into_a_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="JSON"):
        log.append({"event": "train", "loss": float("nan")})
    log.close()
    assert read_events(tmp_path / "metrics.jsonl") == []


def test_environment_names_versions_and_nobody() -> None:
    facts = environment()
    assert facts["packages"]["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["memory_bytes"] > 1e8
    text = json.dumps(facts)
    assert platform.node() not in text
    assert str(Path.home()) not in text
    assert getpass.getuser() not in [word.strip('",') for word in text.split()]


def test_environment_knows_its_commit() -> None:
    if not (Path(__file__).parents[2] / ".git").exists():
        pytest.skip("not a checkout")
    assert len(environment()["commit"].removesuffix("-dirty")) == 40


def test_peak_memory_sees_an_allocation() -> None:
    before = peak_memory_bytes(torch.device("cpu"))
    assert before > 50e6
    torch.ones(before // 4 + 50_000_000)
    assert peak_memory_bytes(torch.device("cpu")) > before + 100e6


def test_shared_parameters_count_once() -> None:
    own = parameter_count(ReformerLM(tiny_model()))
    tied = parameter_count(ReformerLM(tiny_model(tie_embeddings=True)))
    assert own - tied == 12 * 32 + 12  # the head, over both streams, and its bias
