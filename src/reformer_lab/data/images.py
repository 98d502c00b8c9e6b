"""Images as sequences: row by row from the top left, the channels of a pixel together, one token 0 to 255 for each.

All images of a source are decoded once, into one file of the cache (side * side * channels bytes each), which is then
mapped. Where the source has folders (or archives) for training and validation, those are the splits, and "test" is
there only if a test folder is. Otherwise 5 % each are held out, chosen by a hash of the name.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from reformer_lab.data.cache import entry_folder, new_file, read_index, sample_digest, write_index
from reformer_lab.data.config import ImagesConfig
from reformer_lab.data.dataset import Batch, EpochOrder, check_request, eval_selection
from reformer_lab.data.image_sources import ImageSource, Split, open_source
from reformer_lab.data.watched import WatchedBytes
from reformer_lab.errors import UserError
from reformer_lab.seeds import derive_seed

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
STAND_IN_NAME = "procedural stand-in"
STAND_IN_COUNTS = {"train": 512, "validation": 64, "test": 64}

_DATA = "rasters.data"
_HELD_OUT = 0.05


class RasterStore(Protocol):
    """Images that are ready to be read."""

    name: str
    fingerprint: str
    counts: dict[str, int]
    """Images of each split; the numbers of "train" come first, then "validation", then "test"."""

    def read(self, numbers: np.ndarray) -> np.ndarray:
        """Return the images of the given numbers, (count, length) uint8."""
        ...


class CachedRasters:
    """The images of a folder or an archive, from the cache's file."""

    def __init__(self, config: ImagesConfig) -> None:
        path = Path(config.path or "")
        source = open_source(path, config.side)
        folder = entry_folder("images", f"{source.path.resolve()}|{config.side}|{config.channels}")
        index = read_index(folder, source.signature) or _fill(folder, source, config)
        self.name = source.path.name
        self.fingerprint: str = index["sha256"]
        self.counts: dict[str, int] = index["counts"]
        shape = (sum(self.counts.values()), config.length)
        self._watched = WatchedBytes(folder / _DATA, shape[0] * shape[1], self.fingerprint, _after_rasters(self.counts))
        self._rasters = self._watched.bytes.reshape(shape)

    def read(self, numbers: np.ndarray) -> np.ndarray:
        self._watched.check()  # before, as a mapped file that has become shorter cannot be read
        rasters = self._rasters[numbers]
        self._watched.check()
        return rasters


class DrawnRasters:
    """The procedural stand-in: each image is a gradient with discs and boxes on it, a function of its number alone."""

    def __init__(self, config: ImagesConfig) -> None:
        self.name = STAND_IN_NAME
        self.counts = dict(STAND_IN_COUNTS)
        self._side, self._channels = config.side, config.channels
        # The first image stands for all: it changes if numpy's generator ever does.
        sample = self.read(np.arange(1)).tobytes()
        self.fingerprint = hashlib.sha256(f"{STAND_IN_NAME} {self.counts}".encode() + sample).hexdigest()

    def read(self, numbers: np.ndarray) -> np.ndarray:
        return np.stack([self._draw(int(number)).reshape(-1) for number in numbers])

    def _draw(self, number: int) -> np.ndarray:
        """Return one image, (side, side, channels) uint8."""
        random = np.random.default_rng(derive_seed(STAND_IN_NAME, number))
        y, x = np.mgrid[0 : self._side, 0 : self._side] / self._side
        corners = random.uniform(0, 255, (3, 3))
        image = corners[0] + (corners[1] - corners[0]) * x[..., None] + (corners[2] - corners[0]) * y[..., None] / 2
        for _ in range(random.integers(2, 6)):
            centre_x, centre_y, radius = random.uniform(0, 1), random.uniform(0, 1), random.uniform(0.08, 0.3)
            across, down = np.abs(x - centre_x), np.abs(y - centre_y)
            inside = across**2 + down**2 < radius**2 if random.random() < 0.5 else np.maximum(across, down) < radius
            image[inside] = random.uniform(0, 255, 3)
        if self._channels == 1:
            image = image.mean(axis=2, keepdims=True)
        return np.clip(image, 0, 255).astype(np.uint8)


def assign_splits(source: ImageSource) -> list[Split]:
    """Return the split of each image of a source. Raises UserError if there are too few to hold any out."""
    named = source.named_splits()
    if named is not None:
        return named
    count = len(source.names)
    if count < len(SPLITS):
        raise UserError(f"{source.path} holds {count} images: at least {len(SPLITS)} are needed, to hold some out")
    held_out = max(1, round(_HELD_OUT * count))
    # Ordered by a hash and not by name: neighbours in a folder are often frames of one scene, or of one class.
    order = sorted(range(count), key=lambda i: hashlib.blake2b(source.names[i].encode(), digest_size=8).digest())
    splits: list[Split] = ["train"] * count
    for rank, i in enumerate(order[: 2 * held_out]):
        splits[i] = "validation" if rank < held_out else "test"
    return splits


def _fill(folder: Path, source: ImageSource, config: ImagesConfig) -> dict[str, Any]:
    """Decode a source into the cache, the splits one after the other; return the index."""
    splits = assign_splits(source)
    counts = {split: splits.count(split) for split in SPLITS}
    following = {"train": 0, "validation": counts["train"], "test": counts["train"] + counts["validation"]}
    places = []
    for split in splits:
        places.append(following[split])
        following[split] += 1
    with new_file(folder, _DATA) as file:
        written = 0
        for run in source.rasters(config.side, config.channels):
            for raster in run:
                file.seek(places[written] * config.length)
                file.write(raster.tobytes())
                written += 1
        assert written == len(splits)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]
    digest.update(_after_rasters(counts))
    index = {"signature": source.signature, "source": str(source.path), "data": _DATA,
             "sample": sample_digest(folder / _DATA), "sha256": digest.hexdigest(), "counts": counts}
    write_index(folder, index)
    return index


def _after_rasters(counts: dict[Any, int]) -> bytes:
    """Return what the fingerprint covers beside the rasters: where the splits begin."""
    return repr(counts).encode()


class ImagesDataset:
    """Sequences of side * side * channels tokens, each of them a target."""

    unit = ImagesConfig.unit

    def __init__(self, config: ImagesConfig, seed: int) -> None:
        self.config = config
        self.store: RasterStore = DrawnRasters(config) if config.path is None else CachedRasters(config)
        self.name = self.store.name
        self.fingerprint = self.store.fingerprint
        self.vocab_size = config.vocab_size
        self.length = config.length
        self._order = EpochOrder(self.store.counts["train"], seed)

    def _batch(self, numbers: np.ndarray) -> Batch:
        tokens = torch.from_numpy(self.store.read(numbers).astype(np.int64))
        return Batch(tokens, tokens)

    def train_batch(self, index: int, batch_size: int) -> Batch:
        """Return training batch number `index`; see `Dataset`."""
        return self._batch(self._order.take(index * batch_size, batch_size))

    def eval_batches(self, split: str, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """Yield the images of "validation" or "test"; see `Dataset`. Raises UserError if the source has none."""
        check_request(split, batch_size, limit)
        counts = self.store.counts
        if counts[split] == 0:
            raise UserError(f"{self.name} has no {split} images: evaluate on another split, or add a folder {split}/")
        first = counts["train"] + (counts["validation"] if split == "test" else 0)
        for numbers in eval_selection(counts[split], batch_size, limit):
            yield self._batch(first + numbers)
