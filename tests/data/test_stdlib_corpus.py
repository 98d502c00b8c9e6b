import sysconfig
from pathlib import Path

import pytest

from reformer_lab.data import stdlib_corpus
from reformer_lab.data.byte_corpus import ByteCorpusDataset
from reformer_lab.data.config import ByteCorpusConfig
from reformer_lab.data.stdlib_corpus import concatenated, open_stdlib_corpus, stdlib_files
from reformer_lab.errors import UserError


def test_sorted_sources_without_tests(tmp_path):
    for name in ("b.py", "a/z.py", "B.py", "a.py", "test/t.py", "a/tests/t.py", "site-packages/x.py",
                 "__pycache__/c.py", "_sysconfigdata_x.py", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [path.relative_to(tmp_path).as_posix() for path in stdlib_files(tmp_path)]
    assert names == ["B.py", "a.py", "a/z.py", "b.py"]


def test_files_that_are_not_utf8_are_skipped(tmp_path):
    for name, content in {"a.py": b"a\n", "b.py": b"\xff\n", "c.py": b"c\n"}.items():
        (tmp_path / name).write_bytes(content)
    assert concatenated(stdlib_files(tmp_path)) == b"a\nc\n"


def test_default_corpus_is_this_pythons_library(monkeypatch):
    corpus = open_stdlib_corpus()
    content = bytes(corpus.bytes())
    assert 3_000_000 < len(content) < 40_000_000
    assert (Path(sysconfig.get_paths()["stdlib"]) / "dataclasses.py").read_bytes() in content
    monkeypatch.setattr(stdlib_corpus, "concatenated", lambda _: pytest.fail("gathered again"))
    assert open_stdlib_corpus() == corpus
    dataset = ByteCorpusDataset(ByteCorpusConfig(), seed=0)
    assert dataset.fingerprint == corpus.sha256
    assert dataset.name.startswith("standard library of Python 3.")


def test_changed_library_is_gathered_again(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(stdlib_corpus, "_FEWEST_BYTES", 1)
    (tmp_path / "a.py").write_text("first")
    first = open_stdlib_corpus()
    (tmp_path / "b.py").write_text("second")
    assert bytes(open_stdlib_corpus().bytes()) == b"firstsecond"
    assert first.num_bytes == 5


def test_python_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(UserError, match="no sources of its standard library"):
        open_stdlib_corpus()
