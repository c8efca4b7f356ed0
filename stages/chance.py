"""Every random number of training is a function of where it is used (seed, epoch, sample, step), never of what came before.

So the result does not depend on the number of data workers, nor on where a run was interrupted: there is no state to restore.
"""

import hashlib
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def seed_of(*place: int | str) -> int:
    """A seed below 2^63 for one place, e.g. seed_of(7, "augment", epoch, index)."""
    return int.from_bytes(hashlib.sha256(repr(place).encode()).digest()[:8], "little") >> 1


def draws(*place: int | str) -> Random:
    """Independent draws for one place. Only .random() is used on it: its stream is the same in every Python."""
    return Random(seed_of(*place))


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> "np.ndarray":
    """The order in which an epoch visits n samples (int64)."""
    import numpy as np

    return np.random.RandomState(seed_of(seed, "order", epoch) % 2**32).permutation(n)  # a stream that numpy has promised to keep


def sample_at(position: int, seed: int, n: int) -> tuple[int, int]:
    """Samples follow each other in one endless sequence of epochs: (epoch, sample index) at a position of it."""
    epoch, within = divmod(position, n)
    return epoch, int(order(seed, epoch, n)[within])
