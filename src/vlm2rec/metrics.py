"""Hit rate and NDCG with one target, as expectations over the order of ties. Pure functions of counts.

A target that `above` others beat and `ties` others equal has each of the 0-based ranks above..above+ties with the same
probability. The expectation is what a fair lot would give on average, so a constant scorer earns exactly chance,
neither a perfect score nor none.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

METRICS = ("H@10", "N@10", "H@20", "N@20")

FEW = 30
"""A mean over fewer users than this is shown as unreliable, and never as the best."""


def hit(above: ArrayLike, ties: ArrayLike, k: int) -> NDArray[np.float64]:
    """Probability that the target is among the first k; shape of `above`."""
    above, ties = _counts(above, ties)
    inside: NDArray[np.float64] = np.clip(k - above, 0, ties + 1) / (ties + 1)
    return inside


def ndcg(above: ArrayLike, ties: ArrayLike, k: int) -> NDArray[np.float64]:
    """Expectation of 1/log2(rank + 2) for a 0-based rank below k, 0 beyond; shape of `above`.

    With one target the ideal DCG is 1.
    """
    above, ties = _counts(above, ties)
    gained = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])  # by the first n ranks
    mean: NDArray[np.float64] = (gained[np.minimum(above + ties + 1, k)] - gained[np.minimum(above, k)]) / (ties + 1)
    return mean


def summarise(above: ArrayLike, ties: ArrayLike) -> dict[str, float]:
    """Means over users of `METRICS`. Raises ValueError without users."""
    above, ties = _counts(above, ties)
    if above.size == 0:
        raise ValueError("no users to summarise")
    compute = {"H": hit, "N": ndcg}
    return {name: float(compute[name[0]](above, ties, int(name[2:])).mean()) for name in METRICS}


def mean_interval(values: ArrayLike, error: float = 0.05) -> tuple[float, float, float]:
    """Mean of some users' figures `(U,)` and its interval by the t-distribution: (mean, low, high).

    The interval is of 95%, or of 1 - `error`: half of the error lies on either side. One user alone has no spread: the
    interval is infinite. Raises ValueError without users.
    """
    from scipy.special import stdtrit  # not scipy.stats, which takes a second to import

    given = np.asarray(values, dtype=np.float64)
    if given.size == 0:
        raise ValueError("no users to average")
    mean, freedom = float(given.mean()), given.size - 1
    if freedom < 1:
        return mean, -np.inf, np.inf
    reach = float(stdtrit(freedom, 1 - error / 2) * given.std(ddof=1) / np.sqrt(given.size))
    return mean, mean - reach, mean + reach


def count(
    scores: NDArray[np.floating], target: NDArray[np.floating], valid: NDArray[np.bool_], tolerance: float = 0.0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the candidates above each target and tied with it.

    Args:
        scores: `(b, C)` of the candidates, the target not among them.
        target: `(b,)` scores of the targets.
        valid: `(b, C)`, False for padding.
        tolerance: scores this close to the target are ties. Equal vectors seldom score equal to the last bit when
            their products are summed in another order.

    Returns:
        above, ties: `(b,)` each.

    Raises:
        ValueError: a score is NaN. It would rank nowhere, and compare as if it were below.
    """
    if np.isnan(scores).any() or np.isnan(target).any():
        raise ValueError("a score is NaN; nothing can be ranked by it")
    over = valid & (scores > (target + tolerance)[:, None])
    level = valid & ~over & (scores >= (target - tolerance)[:, None])
    return over.sum(axis=1), level.sum(axis=1)


def _counts(above: ArrayLike, ties: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    above, ties = np.asarray(above), np.asarray(ties)
    if above.size and (min(above.min(), ties.min()) < 0 or above.dtype.kind not in "iu" or ties.dtype.kind not in "iu"):
        raise ValueError("above and ties are counts: whole numbers, not negative")
    return above.astype(np.int64), ties.astype(np.int64)
