"""Spare tuples that Python keeps: let go of now and then, a long run holds as much memory at its end as at its beginning.

CPython keeps freed tuples for the next of their length, up to 2,000 of each length from 1 to 20. A tuple made from a generator
is put among the spare ones of its length but was taken from no such place (Python 3.11 to 3.13), and torch makes one in each
call of an autograd function: the spare ones become more for thousands of steps, 5 MB at the most. A full collection frees them.
"""

import gc

MOST_FROZEN_BY_PYTHON = 1000
"""A bound of what Python has frozen itself when it starts: 375 objects in 3.12, none in 3.11 and 3.13."""


def release_spare_objects() -> None:
    """Free Python's spare objects, and garbage that is young, within some 0.5 ms.

    A full collection looks at every object there is, 300,000 with torch, which takes more than 0.1 s. The old ones are hidden
    from it here, by freezing them meanwhile; unless somebody has frozen objects himself, which would be undone.
    """
    if gc.get_freeze_count() > MOST_FROZEN_BY_PYTHON:
        gc.collect()
        return
    gc.collect(1)  # what is garbage now would else be hidden too, and be old afterwards
    gc.freeze()
    try:
        gc.collect()
    finally:
        gc.unfreeze()
