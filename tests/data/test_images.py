import io
import os
import zipfile
import zlib
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from reformer_lab.data import images
from reformer_lab.data.config import ImagesConfig
from reformer_lab.data.images import STAND_IN_COUNTS, ImagesDataset
from reformer_lab.errors import UserError

SIDE = 4
LENGTH = SIDE * SIDE * 3


def pixels(count, seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def write_images(folder, names, seed=0):
    """PNG files of random pixels; return name -> tokens."""
    rasters = pixels(len(names), seed)
    for name, raster in zip(names, rasters, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(raster).save(folder / name, format="PNG")
    return {name: tuple(raster.reshape(-1).tolist()) for name, raster in zip(names, rasters, strict=True)}


def zip_folder(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def write_archive(path, rasters, save=np.savez, **more):
    """As the official archives: planes of red, green, blue."""
    save(path, data=rasters.transpose(0, 3, 1, 2).reshape(len(rasters), -1), labels=np.arange(len(rasters)), **more)


def sequences(dataset, split):
    if split == "train":
        batches = [dataset.train_batch(0, dataset.store.counts["train"])]
    else:
        batches = list(dataset.eval_batches(split, 3))
    assert all(batch.key_padding_mask is None and torch.equal(batch.tokens, batch.targets) for batch in batches)
    return [tuple(row.tolist()) for batch in batches for row in batch.tokens]


def config(path, **options):
    return ImagesConfig(path=str(path), side=SIDE, **options)


@pytest.mark.parametrize("packed", [False, True])
def test_folders_for_training_and_validation_are_the_splits(tmp_path, packed):
    folder = tmp_path / "set"
    train = write_images(folder, [f"train/n{i % 2}/{i}.png" for i in range(7)])
    valid = write_images(folder, [f"val/{i}.PNG" for i in range(5)], seed=1)
    (folder / "words.txt").write_text("no image")
    dataset = ImagesDataset(config(zip_folder(folder, tmp_path / "set.zip") if packed else folder), seed=0)
    assert sorted(sequences(dataset, "train")) == sorted(train.values())
    assert sequences(dataset, "train") != list(train.values())
    assert sequences(dataset, "validation") == list(valid.values())
    with pytest.raises(UserError, match="has no test images"):
        sequences(dataset, "test")


def test_test_folder_is_the_test_split(tmp_path):
    for split, count in {"train": 3, "valid": 2, "test": 1}.items():
        write_images(tmp_path / "set", [f"{split}/{i}.png" for i in range(count)])
    dataset = ImagesDataset(config(tmp_path / "set"), seed=0)
    assert dataset.store.counts == {"train": 3, "validation": 2, "test": 1}


def test_other_images_are_split_by_a_hash_of_their_names(tmp_path):
    all_images = write_images(tmp_path / "a", [f"{i:03}.png" for i in range(60)])
    found = {}
    for seed in (0, 1):
        dataset = ImagesDataset(config(tmp_path / "a"), seed)
        found[seed] = {split: sequences(dataset, split) for split in ("train", "validation", "test")}
    assert {split: len(rows) for split, rows in found[0].items()} == {"train": 54, "validation": 3, "test": 3}
    assert sorted(chain.from_iterable(found[0].values())) == sorted(all_images.values())
    assert found[0]["validation"] == found[1]["validation"]
    assert found[0]["train"] != found[1]["train"]
    held_out = [i for i, row in enumerate(all_images.values()) if row in found[0]["validation"] + found[0]["test"]]
    assert held_out[-1] - held_out[0] > len(held_out), "neighbours were held out"


def test_tokens_are_in_raster_order(tmp_path):
    """Red, green and blue of the top left pixel first, then those of the pixel to the right of it."""
    raster = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    raster[0, 0] = 1, 2, 3
    raster[0, 1] = 4, 5, 6
    raster[1, 0] = 7, 8, 9
    for name in "abc":
        Image.fromarray(raster).save(tmp_path / f"{name}.png")
    row = ImagesDataset(config(tmp_path), seed=0).train_batch(0, 1).tokens[0]
    assert row[:6].tolist() == [1, 2, 3, 4, 5, 6]
    assert row[3 * SIDE : 3 * SIDE + 3].tolist() == [7, 8, 9]


def test_other_sizes_and_modes_are_converted(tmp_path):
    Image.new("RGBA", (10, 7), (10, 20, 30, 255)).save(tmp_path / "a.png")
    Image.new("L", (SIDE, SIDE), 40).save(tmp_path / "b.png")
    Image.new("RGB", (2, 2), (10, 20, 30)).save(tmp_path / "c.bmp")
    rows = {row for split in ("train", "validation", "test")
            for row in sequences(ImagesDataset(config(tmp_path), seed=0), split)}
    assert rows == {(10, 20, 30) * SIDE**2, (40,) * LENGTH}
    grey = ImagesDataset(config(tmp_path, channels=1), seed=0)
    assert grey.length == SIDE**2
    assert grey.train_batch(0, 1).tokens.shape == (1, SIDE**2)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_downsampled_imagenet_archives(tmp_path, monkeypatch, save):
    monkeypatch.setattr("reformer_lab.data.image_sources._ROWS", 4)
    rasters = pixels(15)
    write_archive(tmp_path / "train_data_batch_1.npz", rasters[:6], save, mean=np.zeros(LENGTH))
    write_archive(tmp_path / "train_data_batch_2.npz", rasters[6:10], save)
    write_archive(tmp_path / "val_data.npz", rasters[10:], save)
    dataset = ImagesDataset(config(tmp_path), seed=0)
    rows = [tuple(raster.reshape(-1).tolist()) for raster in rasters]
    assert sorted(sequences(dataset, "train")) == sorted(rows[:10])
    assert sequences(dataset, "validation") == rows[10:]
    single = ImagesDataset(config(tmp_path / "train_data_batch_1.npz"), seed=0)
    assert single.store.counts == {"train": 4, "validation": 1, "test": 1}


def test_the_authors_folders_with_the_size_in_their_names(tmp_path):
    """As train_64x64.tar and valid_64x64.tar unpack."""
    train = write_images(tmp_path, [f"train_64x64/{i:07}.png" for i in range(5)])
    valid = write_images(tmp_path, [f"valid_64x64/{i:07}.png" for i in range(3)], seed=1)
    dataset = ImagesDataset(config(tmp_path), seed=0)
    assert sorted(sequences(dataset, "train")) == sorted(train.values())
    assert sequences(dataset, "validation") == list(valid.values())


def test_archives_come_apart_into_images_again(tmp_path):
    """Ten training archives in folders of their own, as the official .zip files unpack; tokens back to pixels."""
    rasters = pixels(24)
    for i in range(10):
        folder = tmp_path / f"Imagenet64_train_part{1 + i // 5}_npz"
        folder.mkdir(exist_ok=True)
        write_archive(folder / f"train_data_batch_{i + 1}.npz", rasters[2 * i : 2 * i + 2])
    (tmp_path / "Imagenet64_val_npz").mkdir()
    write_archive(tmp_path / "Imagenet64_val_npz" / "val_data.npz", rasters[20:])
    dataset = ImagesDataset(config(tmp_path), seed=0)
    assert dataset.store.counts == {"train": 20, "validation": 4, "test": 0}
    valid = torch.cat([batch.tokens for batch in dataset.eval_batches("validation", 3)])
    assert np.array_equal(valid.view(-1, SIDE, SIDE, 3).numpy(), rasters[20:])
    train = dataset.train_batch(0, 20).tokens.view(-1, SIDE, SIDE, 3).numpy()
    assert {raster.tobytes() for raster in train.astype(np.uint8)} == {raster.tobytes() for raster in rasters[:20]}


def cut_short(path, rasters):
    """An archive whose list of members is whole and whose array ends early."""
    buffer = io.BytesIO()
    np.save(buffer, rasters.transpose(0, 3, 1, 2).reshape(len(rasters), -1))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", buffer.getvalue()[:-7])


@pytest.mark.parametrize(("data", "message"), [
    (np.zeros((3, 4, 4, 3), dtype=np.uint8), r"shape \(3, 4, 4, 3\), expected uint8 of \(N, 3 \* side \* side\)"),
    (np.zeros((3, LENGTH), dtype=np.int64), "data is int64"),
    (np.asfortranarray(np.zeros((3, LENGTH), dtype=np.uint8)), "expected uint8"),
    (np.zeros((3, LENGTH + 1), dtype=np.uint8), r"have 49 values, expected 3 x 4 x 4: is it a downsampled ImageNet"),
    (None, r"data has 137 bytes for 3 images, expected 144"),
], ids=["rasters", "int64", "column by column", "width", "cut short"])
def test_wrong_archives_are_named_with_a_remedy(tmp_path, cache, data, message):
    path = tmp_path / "train_data_batch_1.npz"
    if data is None:
        cut_short(path, pixels(3))
    else:
        np.savez(path, data=data)
    with pytest.raises(UserError, match=message) as caught:
        ImagesDataset(config(tmp_path), seed=0)
    assert str(path) in str(caught.value)
    assert any(remedy in str(caught.value) for remedy in ("fetch it again", "is it a downsampled ImageNet?"))
    assert not list(cache.rglob("*.data"))


def test_archives_of_two_sizes(tmp_path):
    write_archive(tmp_path / "train_data_batch_1.npz", pixels(3))
    write_archive(tmp_path / "val_data.npz", pixels(3, side=8))
    with pytest.raises(UserError, match=r"val_data\.npz have 192 values, expected 3 x 4 x 4: set side=8"):
        ImagesDataset(config(tmp_path), seed=0)


def test_archive_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(tmp_path / "trap.npz", data=np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="no usable downsampled-ImageNet archive"):
        ImagesDataset(config(tmp_path / "trap.npz"), seed=0)
    assert not (tmp_path / "sprung").exists()


def test_archive_errors(tmp_path):
    write_archive(tmp_path / "large.npz", pixels(5, side=8))
    with pytest.raises(UserError, match="set side=8"):
        ImagesDataset(config(tmp_path / "large.npz"), seed=0)
    with pytest.raises(UserError, match="have 3"):
        ImagesDataset(ImagesConfig(path=str(tmp_path / "large.npz"), side=8, channels=1), seed=0)
    np.savez(tmp_path / "other.npz", images=pixels(3))
    np.savez(tmp_path / "float.npz", data=np.zeros((3, LENGTH)))
    whole = (tmp_path / "large.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:300])
    (tmp_path / "flipped.npz").write_bytes(whole.replace(pixels(5, side=8)[0, 0, :4, 0].tobytes(), b"abcd", 1))
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.write(tmp_path / "large.npz", "large.npz")
    for name, side, message in [("other.npz", SIDE, "data.npy"), ("float.npz", SIDE, "float64"),
                                ("cut.npz", SIDE, "zip"), ("flipped.npz", 8, "CRC"), ("packed.zip", 8, "unpack it")]:
        with pytest.raises(UserError, match=message):
            ImagesDataset(ImagesConfig(path=str(tmp_path / name), side=side), seed=0)


def zip_bomb(path, names, size):
    """A .zip of members that are nothing but zeros."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, bytes(size))
    return path


def array_bomb(path, shape, num_bytes):
    """An .npz archive whose array is as large as its header says."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", header.getvalue() + bytes(num_bytes))
    return path


@pytest.mark.parametrize("packed", ["npz", "zip"])
def test_archive_bombs_are_not_unpacked(tmp_path, cache, monkeypatch, packed):
    """Together they are out of proportion, though no single image is."""
    monkeypatch.setattr("reformer_lab.data.corpus_file.EXPANSION_CHECKED_FROM", 1 << 20)
    monkeypatch.setattr("reformer_lab.data.image_sources._decode", lambda *_: pytest.fail("unpacked"))
    if packed == "npz":
        path, remedy = array_bomb(tmp_path / "bomb.npz", (1 << 17, LENGTH), LENGTH << 17), r"save them with numpy\.savez"
    else:
        path = zip_bomb(tmp_path / "bomb.zip", [f"{i}.png" for i in range(6)], 1 << 20)
        remedy = "unpack it and name the folder"
    with pytest.raises(UserError, match=rf"bomb\.{packed} unpacks to [\d,]+ bytes, more than 200 times its [\d,]+: .*{remedy}"):
        ImagesDataset(config(path), seed=0)
    assert not list(cache.rglob("*.data"))


def test_black_images_are_no_bomb(tmp_path):
    """As small as they pack, what they unpack to is no matter up to 64 MiB."""
    dataset = ImagesDataset(config(array_bomb(tmp_path / "black.npz", (1 << 15, LENGTH), LENGTH << 15)), seed=0)
    assert sum(dataset.store.counts.values()) == 1 << 15


def test_images_without_a_value_are_not_counted_up(tmp_path):
    """A thousand million of them fit into a header; their names would not fit into the memory."""
    path = array_bomb(tmp_path / "none.npz", (10**9, 0), 0)
    with pytest.raises(UserError, match="have 0 values, expected 3 x 4 x 4: is it a downsampled ImageNet"):
        ImagesDataset(config(path), seed=0)


def test_large_files_and_claims_are_refused(tmp_path, monkeypatch):
    write_images(tmp_path / "set", ["a.png", "b.png", "c.png"])
    claims = bytearray((tmp_path / "set" / "a.png").read_bytes())
    claims[16:24] = (20_000).to_bytes(4, "big") * 2
    claims[29:33] = zlib.crc32(claims[12:29]).to_bytes(4, "big")
    (tmp_path / "set" / "b.png").write_bytes(claims)
    with pytest.raises(UserError, match=r"b\.png is no readable image \(Image size \(400000000 pixels\) exceeds limit"):
        ImagesDataset(config(tmp_path / "set"), seed=0)
    monkeypatch.setattr("reformer_lab.data.image_sources._LARGEST_FILE", 20)
    for path in (tmp_path / "set", zip_folder(tmp_path / "set", tmp_path / "set.zip")):
        with pytest.raises(UserError, match=r"a\.png.* is no readable image \(it has more than 20 bytes\): repair it or leave"):
            ImagesDataset(config(path), seed=0)


def test_errors(tmp_path, cache):
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no images"):
        ImagesDataset(config(folder), seed=0)
    with pytest.raises(UserError, match="does not exist"):
        ImagesDataset(config(folder / "none"), seed=0)
    write_images(folder, ["a.png", "b.png"])
    with pytest.raises(UserError, match="at least 3 are needed"):
        ImagesDataset(config(folder), seed=0)
    (folder / "c.png").write_bytes(b"no image")
    for path in (folder, zip_folder(folder, tmp_path / "set.zip")):
        with pytest.raises(UserError, match=r"c\.png.* is no readable image"):
            ImagesDataset(config(path), seed=0)
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:-40])
    with pytest.raises(UserError, match=r"c\.png is no readable image"):
        ImagesDataset(config(folder), seed=0)
    (tmp_path / "damaged.zip").write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(UserError, match=r"no readable \.zip"):
        ImagesDataset(config(tmp_path / "damaged.zip"), seed=0)
    assert not list(cache.rglob("*.data"))


def test_second_opening_decodes_nothing_and_changes_are_seen(tmp_path, monkeypatch):
    write_images(tmp_path / "set", [f"{i}.png" for i in range(5)])
    first = ImagesDataset(config(tmp_path / "set"), seed=0)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_fill", lambda *_: pytest.fail("decoded again"))
        assert ImagesDataset(config(tmp_path / "set"), seed=0).fingerprint == first.fingerprint
    write_images(tmp_path / "set", ["0.png"], seed=9)
    changed = ImagesDataset(config(tmp_path / "set"), seed=0)
    assert changed.fingerprint != first.fingerprint
    grey = ImagesDataset(config(tmp_path / "set", channels=1), seed=0)
    assert grey.fingerprint != changed.fingerprint


def test_stand_in_says_what_it_is():
    dataset = ImagesDataset(ImagesConfig(side=16), seed=0)
    assert dataset.name == "procedural stand-in"
    assert dataset.length == 768
    rows = {split: sequences(dataset, split) for split in ("train", "validation", "test")}
    assert {split: len(found) for split, found in rows.items()} == STAND_IN_COUNTS
    assert len(set(chain.from_iterable(rows.values()))) == sum(STAND_IN_COUNTS.values())
    assert max(map(max, rows["train"])) > 200
    other_seed = ImagesDataset(ImagesConfig(side=16), seed=1)
    assert sequences(other_seed, "validation") == rows["validation"]
    assert other_seed.fingerprint == dataset.fingerprint
    assert ImagesDataset(ImagesConfig(side=16, channels=1), seed=0).train_batch(0, 2).tokens.shape == (2, 256)


def test_imagenet_sample(shared_data, tmp_path):
    """A part of the sample, as unpacking all of it takes seconds: the splits are by folder, the pixels Pillow's."""
    path = shared_data / "images" / "imagenet64-sample.zip"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "part.zip", "w") as part:
        for name in [name for name in archive.namelist() if name.endswith("7.jpeg")][::10]:
            part.writestr(name, archive.read(name))
    dataset = ImagesDataset(ImagesConfig(path=str(tmp_path / "part.zip")), seed=0)
    assert dataset.store.counts == {"train": 80, "validation": 5, "test": 0}
    assert dataset.length == 12_288
    with zipfile.ZipFile(tmp_path / "part.zip") as part:
        first = next(name for name in part.namelist() if name.startswith("val/"))
        with part.open(first) as file:
            expected = np.asarray(Image.open(file).convert("RGB"))
    assert np.array_equal(next(dataset.eval_batches("validation", 1)).tokens[0].view(64, 64, 3), expected)
