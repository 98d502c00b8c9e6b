"""Files and words that somebody else made: whatever they hold, the answer is a result or a UserError, and no more is touched.

Every example follows from the test's name, so that a failure is found again. Each test takes a few seconds.
"""

import bz2
import contextlib
import gzip
import io
import json
import lzma
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from damaging import NASTY, damaged_bytes, damaged_document, damaged_json
from reformer_lab.cli.main import VERBS, main
from reformer_lab.cli.report import print_report
from reformer_lab.data.corpus_file import open_corpus_file
from reformer_lab.data.image_sources import holds_images, open_source
from reformer_lab.errors import UserError
from reformer_lab.files import sha256
from reformer_lab.integrations.huggingface import from_huggingface, to_huggingface
from reformer_lab.integrations.trax import from_trax, to_trax_arrays
from reformer_lab.models.config import NUMERICS, ReformerConfig
from reformer_lab.models.language_model import ReformerLM
from reformer_lab.terminal import visible
from reformer_lab.training.checkpoint import CHECKSUMS, load_checkpoint, newest_checkpoint, save_checkpoint
from reformer_lab.training.config import RunConfig
from reformer_lab.training.optimizers import build_optimizer
from reformer_lab.training.run_folder import read_config_file
from training.tiny_runs import tiny_model, tiny_run

TEXT = ("Ünder the sea, a shell. " * 40).encode()
RESULTS = Path(__file__).parent.parent / "results" / "quick"
fuzzed = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def listing(folder: Path) -> set[tuple[str, int]]:
    """Every path below a folder, with the size of files."""
    return {(str(path), path.stat().st_size if path.is_file() else -1) for path in folder.rglob("*")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, inside another one: what appears beside it or in the current folder was written outside."""
    for name in ("place", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("REFORMER_LAB_CACHE", str(tmp_path / "place" / "cache"))
    monkeypatch.delenv("REFORMER_LAB_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "place"
    assert listing(tmp_path) - listing(tmp_path / "place") == {(str(tmp_path / n), -1) for n in ("place", "here")}


def result_or_error(function: Callable[[], Any]) -> Any:
    """The result, or None after a UserError whose message is of a few lines; anything else fails the test."""
    try:
        return function()
    except UserError as error:
        said = str(error)
    assert said
    assert said.count("\n") < 30
    return None


def packed(packing: str) -> bytes:
    if packing != "zip":
        return {"plain": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packing](TEXT)
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("text", TEXT)
        return file.getvalue()


@fuzzed
@given(st.sampled_from(["plain", "zip", "gz", "bz2", "xz"]).flatmap(lambda packing: damaged_bytes(packed(packing))))
def test_corpora(place: Path, content: bytes) -> None:
    path = place / "text"
    path.write_bytes(content)
    corpus = result_or_error(lambda: open_corpus_file(path))
    if corpus is not None:
        assert len(bytes(corpus.bytes()).decode("utf-8")) == corpus.num_characters


def images(kind: str) -> bytes:
    with io.BytesIO() as file:
        if kind == "npz":
            numpy.savez(file, data=numpy.zeros((3, 12), dtype=numpy.uint8))
        else:
            picture = io.BytesIO()
            Image.new("RGB", (2, 2)).save(picture, kind)
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr(f"a.{kind}", picture.getvalue())
        return file.getvalue()


@fuzzed
@given(st.sampled_from(["npz", "png", "gif", "tiff", "jpeg", "bmp", "webp"]).flatmap(
    lambda kind: st.tuples(st.just(kind), damaged_bytes(images(kind)))))
def test_images(place: Path, made: tuple[str, bytes]) -> None:
    kind, content = made
    path = place / ("a.npz" if kind == "npz" else "a.zip")
    path.write_bytes(content)
    holds_images(path)
    result_or_error(lambda: [part.shape for part in open_source(path, 2).rasters(2, 3)])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder: its configuration and one checkpoint, with the optimiser's state."""
    folder = tmp_path_factory.mktemp("valid") / "run"
    config = tiny_run()
    model = ReformerLM(config.model)
    optimizer = build_optimizer(config.optimizer, model)
    tokens = torch.randint(0, 12, (1, 16))
    model(tokens, targets=tokens).loss.backward()
    optimizer.step()
    save_checkpoint(folder / "checkpoints", model, optimizer, {"step": 1, "seconds": 0.5})
    whole = {"digest": config.digest(), "data_fingerprint": "f", "config": config.to_dict()}
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


@fuzzed
@given(data=st.data())
def test_checkpoints(place: Path, run: Path, data: st.DataObject) -> None:
    """A file of a checkpoint is damaged, without or with sums that somebody made to fit."""
    folder = place / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(run, folder)
    checkpoint = folder / "checkpoints" / "1"
    name = data.draw(st.sampled_from(["model.safetensors", "state.pt", "config.json", CHECKSUMS]))
    path = checkpoint / name
    content = path.read_bytes()
    path.write_bytes(data.draw(damaged_document(json.loads(content)) if name.endswith(".json") else damaged_bytes(content)))
    if name != CHECKSUMS and data.draw(st.integers(0, 3)):
        sums = {file.name: sha256(file) for file in checkpoint.iterdir() if file.name != CHECKSUMS}
        (checkpoint / CHECKSUMS).write_text(json.dumps(sums))
    model = ReformerLM(tiny_model())
    optimizer = build_optimizer(tiny_run().optimizer, model)

    def load() -> None:
        newest = newest_checkpoint(folder / "checkpoints", lambda line: None)
        assert newest is not None
        ReformerLM.from_pretrained(newest)
        assert isinstance(load_checkpoint(newest, model, optimizer), dict)

    result_or_error(load)


@fuzzed
@given(content=damaged_document({"digest": "d", "data_fingerprint": "f", "config": tiny_run().to_dict()}))
def test_configurations_of_runs(place: Path, content: bytes) -> None:
    (place / "config.json").write_bytes(content)
    result_or_error(lambda: RunConfig.from_dict(read_config_file(place)["config"]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of each format: a folder of ours, of Hugging Face in both kinds of weights, trax's pickle plain and packed."""
    folder = tmp_path_factory.mktemp("models")
    small: dict[str, Any] = {"vocab_size": 11, "d_model": 8, "d_ff": 12, "num_layers": 2, "num_heads": 2, "d_head": 3,
                             "max_length": 24, "positions": "learned"}
    model = ReformerLM(ReformerConfig(**small | NUMERICS["huggingface"]))
    model.save_pretrained(folder / "ours")
    to_huggingface(model, folder / "safetensors")
    to_huggingface(model, folder / "bin")
    weights = load_file(folder / "bin" / "model.safetensors")
    torch.save(weights, folder / "bin" / "pytorch_model.bin")
    (folder / "bin" / "model.safetensors").unlink()
    for name, pack in (("plain", bytes), ("packed", gzip.compress)):
        (folder / name).mkdir()
        content = {"flat_weights": to_trax_arrays(ReformerLM(ReformerConfig(**small)))}
        (folder / name / "model.pkl").write_bytes(pack(pickle.dumps(content, protocol=2)))
    return {path.name: path for path in folder.iterdir()}


@fuzzed
@given(data=st.data())
def test_models(place: Path, models: dict[str, Path], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(models)))
    folder = place / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(models[kind], folder)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    path.write_bytes(data.draw(damaged_document(json.loads(content)) if path.suffix == ".json" else damaged_bytes(content)))
    readers: dict[str, Callable[[], ReformerLM]] = {
        "ours": lambda: ReformerLM.from_pretrained(folder), "plain": lambda: from_trax(folder / "model.pkl"),
        "packed": lambda: from_trax(folder / "model.pkl"),
    }  # fmt: skip
    model = result_or_error(readers.get(kind, lambda: from_huggingface(folder)))
    assert model is None or isinstance(model, ReformerLM)


@settings(fuzzed, max_examples=12, phases=[Phase.generate])
@given(data=st.data())
def test_result_files(place: Path, data: st.DataObject) -> None:
    """A report is written of what can be read; nothing outside the folder, no markup and no commands to a terminal."""
    folder = place / "suite"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results").mkdir(parents=True)
    suite = json.loads((RESULTS / "suite.json").read_text(encoding="utf-8"))
    name = data.draw(st.sampled_from(sorted(suite["arms"])))
    suite["arms"] = {name: suite["arms"][name][:3]}
    files = [RESULTS / "results" / f"{arm['id']}.jsonl" for arm in suite["arms"][name]]
    hit = data.draw(st.sampled_from([None, *files]))
    for path in files:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        lines = lines[:1] + lines[-6:]
        if path == hit:
            place_of = data.draw(st.sampled_from([0, -1, *range(len(lines))]))
            lines[place_of] = data.draw(damaged_json(lines[place_of]))
        text = "\n".join(json.dumps(line) for line in lines).encode()
        (folder / "results" / path.name).write_bytes(data.draw(damaged_bytes(text)) if path == hit and data.draw(
            st.integers(0, 4)) == 0 else text)
    content = json.dumps(suite).encode() if hit else data.draw(damaged_document(suite))
    (folder / "suite.json").write_bytes(content)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        rows = result_or_error(lambda: print_report(folder))
    assert visible(said.getvalue()) == said.getvalue()
    if rows is not None:
        assert "<script" not in (folder / "report" / "index.html").read_text(encoding="utf-8")
        assert {path.name for path in folder.iterdir()} == {"suite.json", "results", "report"}


WORDS = (
    "--help", "--output", "--corpus", "--preset", "--steps", "--only", "--scale", "--split", "--from", "--to", "--set",
    "trax", "reformer-lab", "huggingface", "--readme", "--prompt", "--url", "info", "attention", "--lengths", "1k", "quick",
    "table2", "--model.num-layers", "--model.attention", "num_layers=99999999999", "attention=[[]]", "place/x",
    "--", "=", "--x", "²", "9" * 5000,
)  # fmt: skip
ANY_WORD = st.one_of(st.sampled_from(WORDS), st.sampled_from(NASTY), st.text(max_size=8))


@settings(fuzzed, max_examples=50, phases=[Phase.generate])
@given(verb=st.sampled_from([verb for verb in VERBS if verb != "env"]), words=st.lists(ANY_WORD, max_size=5))
def test_words_of_the_command_line(place: Path, monkeypatch: pytest.MonkeyPatch, verb: str, words: list[str]) -> None:
    """What would train, measure or fetch for long is cut off where it begins."""

    def stop(*_: Any, **__: Any) -> Any:
        raise UserError("as far as this test goes")

    for name in ("training.loop.train", "runner.engine.run_suite", "data.enwik8._fetch",
                 "data.stdlib_corpus.open_stdlib_corpus",
                 *(f"cli.bench.run_{action}" for action in ("attention", "scaling", "generation", "memory", "step"))):
        monkeypatch.setattr(f"reformer_lab.{name}", stop)
    monkeypatch.chdir(place)
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = main([verb, *words])
        except SystemExit as leaving:  # argparse and --help
            code = int(leaving.code or 0)
    assert code in (0, 2), said.getvalue()
    assert "Traceback" not in said.getvalue()
