"""Where images come from: a folder or a .zip of image files, or downsampled-ImageNet archives.

A source lists its images at once, cheaply, and decodes them one after the other when asked.
"""

import hashlib
import io
import os
import re
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Literal

import numpy as np

from reformer_lab.data.cache import file_signature
from reformer_lab.data.corpus_file import MOST_EXPANSION, most_unpacked
from reformer_lab.errors import UserError
from reformer_lab.folders import find_data

Split = Literal["train", "validation", "test"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test",
}
"""By the folder's name, a size at its end left out: train_64x64, valid_64x64."""
_LARGEST_FILE = 256 << 20
"""Bytes of an image file above which it is not read: a guard against archives made to fill the memory."""
_ROWS = 256
"""Images of an .npz archive that are in memory at once."""
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError)
"""What reading raises on a damaged archive; zipfile's NotImplementedError is a compression that it does not know, its
RuntimeError an encrypted member."""


class ImageSource(ABC):
    """Images by number, each with a name and, where the source says so, a split."""

    def __init__(self, path: Path, names: list[str], signature: str) -> None:
        self.path = path
        self.names = names
        self.signature = signature
        """Changes when the images do."""
        if not names:
            raise UserError(f"{path} holds no images: expected {', '.join(sorted(_SUFFIXES))}, or .npz archives")

    def named_splits(self) -> list[Split] | None:
        """Return each image's split if the source has images for training and for validation apart, else None."""
        splits = [self._split_of(name) for name in self.names]
        return [split or "train" for split in splits] if {"train", "validation"} <= set(splits) else None

    def _split_of(self, name: str) -> Split | None:
        folders = (re.sub(r"_\d+x\d+$", "", part.lower()) for part in PurePosixPath(name).parts[:-1])
        return next((_SPLIT_FOLDERS[folder] for folder in folders if folder in _SPLIT_FOLDERS), None)

    @abstractmethod
    def rasters(self, side: int, channels: int) -> Iterator[np.ndarray]:
        """Yield runs of images in the order of `names`, (n, side * side * channels) uint8 each, in raster order.

        Raises UserError for an image that cannot be read.
        """


class FileImages(ImageSource):
    """Image files of a folder or of a .zip, sorted by name; decoded, and resized where they have another size."""

    def __init__(self, path: Path, names: list[str], signature: str) -> None:
        super().__init__(path, sorted(names), signature)

    def rasters(self, side: int, channels: int) -> Iterator[np.ndarray]:
        if self.path.is_dir():
            for name in self.names:
                yield _decode(partial(_open_file, self.path / name), f"{self.path / name}", side, channels)
            return
        with zipfile.ZipFile(self.path) as archive:
            for name in self.names:
                yield _decode(partial(archive.open, name), f"{name} in {self.path}", side, channels)


class ArrayImages(ImageSource):
    """Downsampled-ImageNet archives: `data` is (N, 3 * side * side) uint8, plane after plane (red, green, blue)."""

    def __init__(self, path: Path, archives: list[Path], signature: str, side: int) -> None:
        # The width is checked before the names are listed: a small archive may claim any number of images without a value.
        self.counts = {archive: _count_of(archive, side) for archive in archives}
        super().__init__(path, [f"{archive.name}/{i}" for archive, count in self.counts.items() for i in range(count)],
                         signature)

    def _split_of(self, name: str) -> Split | None:
        if re.match(r"train_data_batch_\d+\.npz/", name):
            return "train"
        return "validation" if name.startswith("val_data.npz/") else None

    def rasters(self, side: int, channels: int) -> Iterator[np.ndarray]:
        if channels != 3:
            raise UserError(f"channels={channels}: the images of {self.path} have 3")
        for archive, count in self.counts.items():
            yield from _array_rows(archive, count, side)


def open_source(path: str | Path, side: int) -> ImageSource:
    """Return the images at a path; `side` is what those of .npz archives must have.

    Raises UserError if there are none, or an archive is damaged, or unpacks to so much that it must be a bomb.
    """
    source = find_data(path)
    if os.path.isdir(source):  # Path.is_dir raises for names that the system refuses
        return _open_folder(source, side)
    if not os.path.isfile(source):
        raise UserError(f"{source} does not exist: name a folder or an archive of images, or leave it out "
                        "to use the procedural stand-in")
    try:
        signature = file_signature(source)
        if source.suffix.lower() == ".npz":
            return ArrayImages(source, [source], signature, side)
        with zipfile.ZipFile(source) as archive:
            members = {info.filename: info.file_size for info in archive.infolist()
                       if not info.is_dir() and not info.filename.startswith("__MACOSX/")}
    except zipfile.BadZipFile as error:
        raise UserError(f"{source} is no readable .zip or .npz ({error}): fetch or make it again") from error
    except OSError as error:
        raise UserError(f"{source} cannot be read ({error.strerror or error}): check its permissions") from error
    images = [name for name in members if PurePosixPath(name).suffix.lower() in _SUFFIXES]
    if not images and any(name.endswith(".npz") for name in members):
        raise UserError(f"{source} holds .npz archives: unpack it and name the folder")
    _check_unpacked(source, sum(members[name] for name in images), "if they are images, unpack it and name the folder")
    return FileImages(source, images, signature)


def holds_images(path: Path) -> bool:
    """Return whether a path is for `open_source`: a folder, an .npz archive, or a .zip with images or such archives."""
    if os.path.isdir(path) or path.suffix.lower() == ".npz":
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return any(PurePosixPath(name).suffix.lower() in _SUFFIXES | {".npz"} for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _open_folder(source: Path, side: int) -> ImageSource:
    files = []
    for folder, folders, names in os.walk(source):
        folders.sort()
        files += [Path(folder, name) for name in names
                  if Path(name).suffix.lower() in _SUFFIXES | {".npz"} and Path(folder, name).is_file()]
    names_states = sorted((file.relative_to(source).as_posix(), file.stat()) for file in files)
    listing = "\n".join(f"{name} {state.st_size} {state.st_mtime_ns}" for name, state in names_states)
    signature = hashlib.sha256(listing.encode()).hexdigest()
    names = [name for name, _ in names_states]
    archives = [source / name for name in names if name.lower().endswith(".npz")]
    if archives and len(archives) < len(names):
        raise UserError(f"{source} holds both .npz archives and image files: keep one sort in it")
    return ArrayImages(source, archives, signature, side) if archives else FileImages(source, names, signature)


def _open_file(path: Path) -> IO[bytes]:
    return path.open("rb")


def _decode(open_file: Callable[[], IO[bytes]], label: str, side: int, channels: int) -> np.ndarray:
    """Return one image as (1, side * side * channels) uint8, resized by averaging areas (Pillow's BOX) if need be."""
    from PIL import Image  # which decodes no image of more than 179 million pixels

    try:
        with open_file() as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise ValueError(f"it has more than {_LARGEST_FILE:,} bytes")
        with Image.open(io.BytesIO(content)) as image:
            pixels = image.convert("RGB" if channels == 3 else "L")
    except (*_DAMAGE, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{label} is no readable image ({error}): repair it or leave it out") from error
    if pixels.size != (side, side):
        pixels = pixels.resize((side, side), Image.Resampling.BOX)
    return np.asarray(pixels, dtype=np.uint8).reshape(1, -1)


def _array_file(archive: zipfile.ZipFile) -> tuple[IO[bytes], tuple[int, ...]]:
    """Return the stream of the array `data`, at its first value, and its shape. Nothing is ever unpickled."""
    file = archive.open("data.npy")
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read_header(file)
    if dtype != np.uint8 or len(shape) != 2 or fortran_order:
        raise ValueError(f"data is {dtype} of shape {shape}, expected uint8 of (N, 3 * side * side)")
    held, needed = archive.getinfo("data.npy").file_size - file.tell(), shape[0] * shape[1]
    if held != needed:
        raise ValueError(f"data has {held:,} bytes for {shape[0]:,} images, expected {needed:,}")
    return file, shape


def _count_of(archive: Path, side: int) -> int:
    """Return the number of images of an archive. Raises UserError where they have another side, or it is damaged or a bomb."""
    try:
        with zipfile.ZipFile(archive) as opened:
            file, (count, width) = _array_file(opened)
            file.close()
            packed_to = opened.getinfo("data.npy").file_size
    except (*_DAMAGE, KeyError) as error:
        raise UserError(_no_archive(archive, error)) from error
    if width != 3 * side * side:
        has = round((width / 3) ** 0.5)
        known = has >= 2 and 3 * has * has == width
        raise UserError(f"the images of {archive} have {width} values, expected 3 x {side} x {side}: "
                        + (f"set side={has}" if known else "is it a downsampled ImageNet?"))
    _check_unpacked(archive, packed_to, "if they are images, save them with numpy.savez, which does not pack them")
    return count


def _check_unpacked(archive: Path, num_bytes: int, remedy: str) -> None:
    """Raise UserError if what an archive says that it holds is out of proportion; zipfile reads no more than it says."""
    packed = archive.stat().st_size
    if num_bytes > most_unpacked(packed):
        raise UserError(f"{archive} unpacks to {num_bytes:,} bytes, more than {MOST_EXPANSION} times its {packed:,}: {remedy}")


def _array_rows(archive: Path, count: int, side: int) -> Iterator[np.ndarray]:
    """Yield the images of an archive in runs, planes turned into pixels; one run is in memory at a time."""
    size = 3 * side * side
    with zipfile.ZipFile(archive) as opened:
        file, _ = _array_file(opened)
        for first in range(0, count, _ROWS):
            rows = min(_ROWS, count - first)
            try:
                values = file.read(rows * size)
            except _DAMAGE as error:
                raise UserError(_no_archive(archive, error)) from error
            if len(values) < rows * size:
                raise UserError(_no_archive(archive, "it ends early"))
            planes = np.frombuffer(values, dtype=np.uint8).reshape(rows, 3, side * side)
            yield planes.transpose(0, 2, 1).reshape(rows, size)


def _no_archive(archive: Path, reason: object) -> str:
    return f"{archive} is no usable downsampled-ImageNet archive ({reason}): fetch it again"
