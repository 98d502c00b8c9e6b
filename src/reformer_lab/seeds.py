"""Seeds derived from seeds, so that every random draw has a generator of its own.

No part of the package reads or changes torch's, numpy's or Python's global random state.
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order.

    >>> derive_seed(0, "layer", 3) == derive_seed(0, "layer", 3)
    True
    >>> derive_seed(0, "layer", 3) == derive_seed(0, "layer", 4)
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
