"""A mistake in an option is one line that names it, not a box."""

import pytest

from reformer_lab.cli import evaluate, train
from reformer_lab.errors import UserError


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model.num-buckets", "7"], ["num_buckets=7", "even"]),
        (["--model.axial-shape", "2", "2"], ["axial_shape=(2, 2)", "4 places", "max_length=2048"]),
        (["--stepz", "3"], ["--stepz", "did you mean --steps?"]),
        (["--steps", "many"], ["--steps", "'many'"]),
        (["--optimizer.name", "sgd"], ["'sgd'", "adam"]),
        (["--steps"], ["--steps", "Missing value"]),
        (["novel.txt"], ["novel.txt"]),
    ],
    ids=lambda value: " ".join(value[:2]),
)
def test_a_mistake_in_an_option_of_train(arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        train.main(arguments)
    message = str(error.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert "│" not in message
    assert "reformer-lab train --help" in message
    assert capsys.readouterr().err == ""


def test_evaluate_without_a_run_says_what_is_missing() -> None:
    with pytest.raises(UserError, match="PATH"):
        evaluate.main([])


def test_help_is_printed_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        train.main(["--help"])
    assert leaving.value.code == 0
    assert "--corpus" in capsys.readouterr().out
