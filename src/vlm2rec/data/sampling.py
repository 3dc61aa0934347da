"""Drawing some of many, the same ones on every machine and with every version."""

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray


def sample_users(n_users: int, count: int | None, seed: int, purpose: str) -> NDArray[np.int64]:
    """Draw users `(min(count, n_users),)` without replacement, ascending; a pure function of its arguments.

    Each `purpose` has a draw of its own. More users contain fewer: the 64 of a seed are among its 128. None, or
    more than there are, is everyone.
    """
    if count is None or count >= n_users:
        return np.arange(n_users, dtype=np.int64)
    if count < 1:
        raise ValueError(f"count = {count}; draw at least one user")
    state = int.from_bytes(blake2b(f"{seed}\0{purpose}".encode(), digest_size=16).digest(), "little")
    # Raw bits, which NumPy promises to keep from version to version; it does not promise that of `permutation`.
    keys = np.random.PCG64(state).random_raw(n_users)
    return np.sort(np.argsort(keys, kind="stable")[:count]).astype(np.int64)
