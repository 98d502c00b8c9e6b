import hashlib
from pathlib import Path

import pytest
from PIL import Image

from reformer_lab.cli.data import main
from reformer_lab.data import enwik8
from reformer_lab.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "cache"))


def facts(capsys):
    return {line[:14].strip(): line[15:] for line in capsys.readouterr().out.splitlines()}


def test_info_of_a_text(tmp_path, capsys):
    path = tmp_path / "text.txt"
    path.write_text("é" * 500 + "a" * 500, encoding="utf-8")
    assert main(["info", str(path), "--length", "64"]) == 0
    shown = facts(capsys)
    assert shown["corpus"] == "text.txt"
    assert (shown["bytes"], shown["characters"]) == ("1,500", "1,000")
    assert shown["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert shown["train"] == "900 characters, 1,400 bytes, from byte 0"
    assert shown["validation"] == "50 characters, 50 bytes, from byte 1,400"
    assert shown["test"] == "50 characters, 50 bytes, from byte 1,450"
    assert shown["windows"] == "85 of 64 bytes in an epoch, one every 16"
    assert main(["info", str(path), "--split-by", "bytes", "--valid", "100", "--test", "20"]) == 0
    shown = facts(capsys)
    assert shown["validation"].startswith("100 characters, 100 bytes, from byte 1,380")
    assert "less than one window of 2,048" in shown["windows"]


def test_info_of_the_embedded_corpus(capsys):
    assert main(["info"]) == 0
    assert facts(capsys)["corpus"].startswith("standard library of Python 3.")


def test_info_of_images(tmp_path, capsys):
    for i in range(40):
        Image.new("RGB", (4, 4), (i, i, i)).save(tmp_path / f"{i}.png")
    assert main(["info", str(tmp_path), "--side", "4"]) == 0
    shown = facts(capsys)
    assert shown["sequence"] == "4 x 4 x 3 = 48 tokens"
    assert (shown["train"], shown["validation"], shown["test"]) == ("36 images", "2 images", "2 images")


def test_user_errors_pass_to_the_caller(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        main(["info", str(tmp_path / "none")])
    with pytest.raises(UserError, match="reformer-lab data download enwik8"):
        main(["info", "enwik8"])


def test_download(tmp_path, capsys, monkeypatch):
    content = b"not the real one"
    monkeypatch.setattr(enwik8, "NUM_BYTES", len(content))
    monkeypatch.setattr(enwik8, "SHA256", hashlib.sha256(content).hexdigest())
    (tmp_path / "source").write_bytes(content)
    arguments = ["download", "enwik8", "--url", (tmp_path / "source").as_uri(), "--output", str(tmp_path / "got")]
    assert main(arguments) == 0
    assert (tmp_path / "got").read_bytes() == content
    assert "its sum is right" in capsys.readouterr().out
    Path(tmp_path / "source").write_bytes(content[::-1])
    (tmp_path / "got").unlink()
    with pytest.raises(UserError, match="sha256"):
        main(arguments)


@pytest.mark.parametrize("arguments", [[], ["download"], ["download", "text8"], ["info", "x", "--split-by", "lines"]])
def test_wrong_calls_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "reformer-lab data info novel.txt" in capsys.readouterr().out
