"""Result files: what is written is read again, and what is damaged is reported."""

import json
from pathlib import Path

import pytest

from reformer_lab.errors import UserError
from reformer_lab.reporting.records import (
    ArmEntry,
    MissingResult,
    Record,
    Suite,
    read_record,
    read_results,
    read_suite,
    write_record,
)

EVENTS = [
    {"event": "train", "step": 10, "loss": 2.0, "seconds": 1.5},
    {"event": "eval", "step": 10, "name": "own", "bits": 3.0},
    {"event": "eval", "step": 10, "name": "LSH-8", "bits": 2.5},
    {"event": "train", "step": 20, "loss": 1.0, "seconds": 3.0},
    {"event": "eval", "step": 20, "name": "own", "bits": 1.5},
    {"event": "eval", "step": 20, "name": "own", "bits": None},
    {"event": "final", "step": 20, "evaluations": {"LSH-8": {"accuracy": 0.75}}},
]
HEADER = {"arm": "a-seed0-0123", "seed": 3, "status": "finished", "environment": {"torch": "1"}}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    write_record(tmp_path, HEADER, EVENTS)
    return read_results(tmp_path)["a-seed0-0123"]


def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    assert record.finished
    assert record.seed == 3
    assert record.environment == {"torch": "1"}
    assert list(record.events) == EVENTS
    assert record.problems == ()


def test_curves_take_the_events_asked_for(record: Record) -> None:
    assert record.curve("train", "loss") == ([10, 20], [2.0, 1.0])
    assert record.curve("eval", "bits", name="own") == ([10, 20], [3.0, 1.5])
    assert record.curve("eval", "accuracy") == ([], [])


def test_values_of_the_final_event(record: Record) -> None:
    assert record.value("evaluations", "LSH-8", "accuracy") == 0.75
    with pytest.raises(MissingResult, match=r"a-seed0-0123: no evaluations\.LSH-4\.accuracy"):
        record.value("evaluations", "LSH-4", "accuracy")
    with pytest.raises(MissingResult):
        Record(HEADER).value("evaluations")


def test_measurements(record: Record) -> None:
    assert Record(HEADER, [{"event": "measurement", "bytes": 1}, {"event": "eval"}]).measurements == [
        {"event": "measurement", "bytes": 1}]
    assert record.measurements == []


def test_run_time_is_the_headers_or_the_last_steps(record: Record) -> None:
    assert record.seconds == 3.0
    assert Record({**HEADER, "seconds": 9}, EVENTS).seconds == 9.0
    assert Record(HEADER, [{"event": "measurement", "seconds": 0.1}]).seconds is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "no header line"),
        (b'{"event": "train", "step": 1}\n', "no header line"),
        (b'{"event": "run", "status": "finished"}\n{"event": "tr', "line 2: not a JSON object"),
        (b'{"event": "run", "status": "finished"}\n[1]\n', "line 2: not a JSON object"),
        (b"\xff\xfe\x00\n", "line 1: not a JSON object"),
    ],
    ids=["empty", "headerless", "cut short", "list", "binary"],
)
def test_damage_is_reported_never_raised(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    record = read_record(path)
    assert any(problem in line for line in record.problems)
    assert record.arm == "x"


def test_a_file_without_a_header_does_not_count_as_finished(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"event": "final", "status": "finished"}))
    assert not read_record(path).finished
    assert "no header" in read_record(path).error


def test_a_failed_run_says_why() -> None:
    assert Record({"status": "failed", "error": "loss is not finite"}).error == "loss is not finite"
    assert Record({"status": "interrupted"}).error == "interrupted"
    assert Record({"status": "finished", "error": None}).error == ""


def test_nothing_but_the_result_file_is_left_behind(tmp_path: Path) -> None:
    path = write_record(tmp_path, HEADER, EVENTS)
    write_record(tmp_path, HEADER, EVENTS[:1])
    assert list(path.parent.iterdir()) == [path]
    assert len(read_record(path).events) == 1


def test_suite_is_read_as_it_was_written(tmp_path: Path) -> None:
    arms = {"table2": (ArmEntry(id="a", name="full"), ArmEntry(id="b", name="full", seed=1)), "depth": ()}
    suite = Suite(scale="quick", started="2020-01-01T00:00:00+00:00", command="reformer-lab", arms=arms, seconds=1.5)
    suite.write(tmp_path)
    assert read_suite(tmp_path) == suite
    assert tuple(read_suite(tmp_path).arms) == ("table2", "depth")


def test_a_folder_without_results_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"no suite\.json.*reformer-lab reproduce"):
            read_suite(folder)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"scale": "quick", "arms": [1]}', '{"scale": "quick", "arms": {"x": [{"id": "a"}]}}', "\xff"],
)
def test_a_damaged_suite_file_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "suite.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"suite\.json is damaged"):
        read_suite(tmp_path)
