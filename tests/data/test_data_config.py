import subprocess
import sys

import pytest

from reformer_lab.data.config import ByteCorpusConfig, DuplicationConfig, ImagesConfig, data_config_from_dict
from reformer_lab.errors import UserError


@pytest.mark.parametrize("config", [
    DuplicationConfig(length=1024), ByteCorpusConfig(path="x.zip", split_by="bytes", valid=3), ImagesConfig(side=32),
], ids=lambda config: config.kind)
def test_dict_gives_the_config_back(config):
    assert data_config_from_dict(config.to_dict()) == config
    assert config.to_dict()["kind"] == config.kind


@pytest.mark.parametrize(("make", "name"), [
    (lambda: DuplicationConfig(length=7), "length=7"),
    (lambda: DuplicationConfig(length=2), "length=2"),
    (lambda: DuplicationConfig(num_symbols=128), "vocab_size=128"),
    (lambda: DuplicationConfig(length=4, num_symbols=63), "num_symbols=63"),
    (lambda: ByteCorpusConfig(length=1), "length=1"),
    (lambda: ByteCorpusConfig(stride=0), "stride=0"),
    (lambda: ByteCorpusConfig(split_by="lines"), "split_by='lines'"),  # type: ignore[arg-type]
    (lambda: ByteCorpusConfig(valid=-1), "valid=-1"),
    (lambda: ByteCorpusConfig(path=""), "path=''"),
    (lambda: ImagesConfig(channels=4), "channels=4"),  # type: ignore[arg-type]
    (lambda: data_config_from_dict({"kind": "video"}), "'video'"),
    (lambda: data_config_from_dict({"kind": "images", "size": 3}), "'size'"),
])
def test_error_names_the_value(make, name):
    with pytest.raises(UserError) as caught:
        make()
    assert name in str(caught.value)


def test_config_is_free_of_torch_and_numpy():
    code = "import sys, reformer_lab.data.config; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
