"""Training leaves nothing behind in Python: neither objects, nor the spare ones that Python keeps."""

import gc
import sys
import weakref
from pathlib import Path

from tiny_runs import tiny_run

from reformer_lab.training import spare_objects
from reformer_lab.training.loop import train
from reformer_lab.training.spare_objects import release_spare_objects
from reformer_lab.training.tracking import Event


def blocks_of(number: int) -> int:
    """How many blocks more Python holds after so many tuples of each length that nobody holds."""
    before = sys.getallocatedblocks()
    for length in range(1, 20):
        for _ in range(number):
            tuple(i for i in range(length))
    return sys.getallocatedblocks() - before


def test_spare_tuples_are_released() -> None:
    release_spare_objects()
    kept = blocks_of(500)
    before, frozen = sys.getallocatedblocks(), gc.get_freeze_count()
    release_spare_objects()
    released = before - sys.getallocatedblocks()
    assert released > 0.9 * kept > 0
    assert gc.get_freeze_count() <= frozen


def test_young_garbage_is_released() -> None:
    gc.disable()
    try:
        for _ in range(1000):
            ring: list[object] = []
            ring.append(ring)
        before = len(gc.get_objects())
        release_spare_objects()
        assert before - len(gc.get_objects()) > 990
    finally:
        gc.enable()


def test_old_objects_are_not_looked_at() -> None:
    """That would take 0.1 s and more. Python does it by itself, when there are many new ones."""

    class Ring:
        def __init__(self) -> None:
            self.itself = self

    ring = Ring()
    gc.collect()  # makes it old
    seen = weakref.ref(ring)
    del ring
    release_spare_objects()
    assert seen() is not None
    gc.collect()
    assert seen() is None


def test_what_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        assert frozen > spare_objects.MOST_FROZEN_BY_PYTHON
        release_spare_objects()
        assert gc.get_freeze_count() > 0.9 * frozen
    finally:
        gc.unfreeze()


def test_steps_leave_no_objects(tmp_path: Path) -> None:
    """A hundred steps with evaluations and checkpoints leave no object behind, and few blocks of memory: without the release
    they leave 25 a step, of which caches take 4 that settle later."""
    held = {}

    def count(event: Event) -> None:
        if event["event"] == "step" and event["step"] % 20 == 1:  # after step 20 spare objects have been released
            held[event["step"]] = len(gc.get_objects()), sys.getallocatedblocks()

    train(tiny_run(steps=161, log_every=20, eval_every=20, checkpoint_every=20), tmp_path / "run", count)
    (objects, blocks), (objects_later, blocks_later) = held[61], held[161]
    assert objects_later - objects < 50
    assert blocks_later - blocks < 1000
