"""No file of this package reads a pickle but through torch's weights_only and the reader of trax's checkpoints."""

import re
from pathlib import Path

import reformer_lab

SOURCES = {path: path.read_text(encoding="utf-8") for path in Path(reformer_lab.__file__).parent.rglob("*.py")}


def test_torch_reads_tensors_only() -> None:
    calls = [call for text in SOURCES.values() for call in re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", text)]
    assert len(calls) >= 2
    assert sum(text.count("torch.load(") for text in SOURCES.values()) == len(calls)
    for call in calls:
        assert "weights_only=True" in call, call


def test_nothing_else_runs_what_a_file_says() -> None:
    risky = r"pickle\.loads?\(|pickle\._?Unpickler|\bjoblib|\bdill\b|\bshelve\b|marshal\.load|" \
            r"(?<![\w.])(?:eval|exec)\(|" \
            r"allow_pickle=True|numpy\.load\(|np\.load\(|extractall|\.extract\(|tarfile|unpack_archive|yaml\.|shell=True|weights_only=False"
    found = {(path.name, match) for path, text in SOURCES.items() for match in re.findall(risky, text)}
    assert found == {("trax_pickle.py", "pickle.Unpickler")}
