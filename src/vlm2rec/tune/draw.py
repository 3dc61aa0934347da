"""Which point comes next: by lot at first, then by Optuna's tree-structured Parzen estimator; never one again."""

import warnings
from collections.abc import Mapping

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from vlm2rec.tune.space import Search

BY_LOT = 10
"""Draws before the estimator has enough to go by: Optuna's own number."""
_ATTEMPTS = 32  # it may well propose what has been tried, above all where little is left


def draw(search: Search, tried: Mapping[int, float | None], number: int) -> int:
    """The point of trial `number`, as `Search.index` numbers them, none of those `tried`. There must be one left.

    Args:
        search: the space.
        tried: point -> N@20 on validation; None: it is not known yet.
        number: of the trial; with the configuration's seed, it seeds the draw.
    """
    rng = np.random.default_rng([search.base.seed, number])
    if len(tried) >= BY_LOT:
        proposed = _propose(search, tried, int(rng.integers(2**32)))
        if proposed is not None:
            return proposed
    place = int(rng.integers(search.size - len(tried)))  # among those that are left, in order
    for known in sorted(tried):
        place += known <= place
    return place


def _propose(search: Search, tried: Mapping[int, float | None], seed: int) -> int | None:
    """What the estimator makes of the trials so far; None where it comes up with nothing new."""
    ranks = {key: _ranks(listed) for key, listed in search.choices.items()}
    kinds: dict[str, BaseDistribution] = {
        key: IntDistribution(0, len(listed) - 1) if ranks[key] else CategoricalDistribution(range(len(listed)))
        for key, listed in search.choices.items()
    }

    def places(index: int) -> dict[str, int]:
        found = zip(search.choices, np.unravel_index(index, search.sizes), strict=True)
        return {key: ranks[key].index(int(place)) if ranks[key] else int(place) for key, place in found}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=BY_LOT, constant_liar=True)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(direction="maximize", sampler=sampler)  # in memory: a place to think
        for index, value in tried.items():
            state = TrialState.RUNNING if value is None else TrialState.COMPLETE
            study.add_trial(create_trial(state=state, value=value, params=places(index), distributions=kinds))
        for _ in range(_ATTEMPTS):
            trial = study.ask(kinds)
            place = [ranks[key][trial.params[key]] if ranks[key] else trial.params[key] for key in search.choices]
            index = int(np.ravel_multi_index(place, search.sizes))
            if index not in tried:
                return index
            known = tried[index]
            study.tell(trial, known, TrialState.FAIL if known is None else TrialState.COMPLETE)
    finally:
        optuna.logging.set_verbosity(level)
    return None


def _ranks(listed: tuple[str, ...]) -> list[int]:
    """Numbers in order of size: the place of each in the list. Empty where they are not numbers."""
    try:
        return [int(place) for place in np.argsort([float(value) for value in listed], kind="stable")]
    except ValueError:
        return []
