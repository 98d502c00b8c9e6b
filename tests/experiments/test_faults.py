"""Runs that name their faults."""

import pytest

from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig
from reformer_lab.errors import UserError
from reformer_lab.experiments.faults import FAULTS, FEW, FLAT, FROZEN, LINES, REPEATED, WRONG, FaultyRunConfig, with_faults
from reformer_lab.models.presets import get_preset
from reformer_lab.training.config import RunConfig

RUN = RunConfig(model=get_preset("duplication_cpu"), data=DuplicationConfig(), steps=3)
TEXT = RunConfig(model=get_preset("cpu_tiny"), data=ByteCorpusConfig(length=128), steps=3)


def test_no_fault_is_the_run_itself() -> None:
    assert with_faults(RUN, ()) is RUN
    assert "faults" not in RUN.to_dict()


def test_faults_are_part_of_the_identity() -> None:
    names = tuple(name for name in FAULTS if name != LINES)
    digests = {with_faults(RUN, faults).digest() for faults in [(), *((name,) for name in names), names]}
    assert len(digests) == len(names) + 2
    run = with_faults(RUN, names)
    assert FaultyRunConfig.from_dict(run.to_dict()) == run
    assert run.to_dict()["faults"] == list(names)
    with pytest.raises(UserError, match="unknown run field 'faults'"):  # an ordinary run would silently leave them out
        RunConfig.from_dict(run.to_dict())


def test_what_the_configuration_can_express_stands_in_it() -> None:
    model = with_faults(RUN, (FLAT, FEW)).model
    assert (model.key_scale, model.num_buckets) == ("unit_over_sqrt_d", 64 // 16)
    assert model.replace(key_scale="unit", num_buckets=8) == RUN.model
    assert with_faults(RUN, (FROZEN, WRONG)).model == RUN.model


@pytest.mark.parametrize(("run", "name", "message"), [
    (RUN, "frozen", "'frozen' is not known; known: flat logits"),
    (RUN, LINES, "'shuffled lines' needs a text, not duplication"),
    (TEXT, REPEATED, "'few training sequences' is the duplication task's, not byte_corpus's"),
    (RunConfig(model=RUN.model.replace(reversible=False), data=RUN.data, steps=3), WRONG, "needs reversible=True"),
])
def test_faults_that_a_run_cannot_have(run: RunConfig, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_faults(run, (name,))
    assert with_faults(TEXT, (LINES,)).data == TEXT.data
