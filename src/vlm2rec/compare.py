"""Several runs side by side: mean ± sd over seeds, and paired tests between methods.

Runs whose configurations differ in nothing but the seed are one method. A test first averages each user's N@20
over the seeds of a method, then compares two methods over the users (paired t), and Holm's correction covers all
comparisons made. The users are what the test generalises over; how much the seeds matter shows in the sd and in
the differences of the single seeds, which are kept apart.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from vlm2rec.comparison import SEQUENTIAL, Comparison, Method, PairedTest, Vector
from vlm2rec.errors import InputError
from vlm2rec.metrics import ndcg
from vlm2rec.ranks import Ranks, counted_methods, read_ranks
from vlm2rec.runs import Run

COUNTING = ("random", "poprec", "itemknn")
SEEDLESS = ("poprec", "itemknn", "bert", "clip", "pair", "vanilla", "vlm_prompt")
"""Kinds of which a seed changes nothing in Task 1."""
# Reading order of a table: sanity rows, item ids, frozen encoders, then what learns more and more.
_FIRST = (*COUNTING, "gru4rec", "sasrec", "bert", "clip", "pair", "vanilla")
_LAST = ("sft", "vlm2rec", "hybrid")
_READ_NO_PROMPT = (*COUNTING, "gru4rec", "sasrec", "bert", "clip", "pair", "hybrid")
_WITHOUT_EFFECT = frozenset(  # speed and memory only: runs that differ here are still seeds of one method
    {"seed", "preset", "training.micro_batch", "training.gradient_checkpointing", "training.checkpoint_every"}
    | {"evaluation.batch_tokens", "backbone.cache_vision", "monitor.probes", "monitor.users", "monitor.gradients"}
    | {"backbone.compile", "backbone.sharded", "evaluation.missing"}
)


def compare(runs: Sequence[Path | str]) -> Comparison:
    """Group finished runs into methods, average over seeds and test every pair of methods.

    Popularity, item-kNN and chance stand among them as the runs counted them, unless they are given as runs.
    Neither pairs of two counting methods nor the random scorer are tested: nobody asks, and each further comparison
    costs the others under Holm. Tests read `first - second`, the second being higher up in the table.

    Args:
        runs: run directories that hold `results.json` and `users.parquet`.

    Raises:
        InputError: no run given, one is unfinished or unreadable, two are the same method and seed, or they differ
            in data, split, candidates or users, so that their figures must not stand in one table.
    """
    if not runs:
        raise InputError("nothing to compare; give one run directory or more")
    opened = [Run.open(path) for path in runs]
    tables = [read_ranks(run.path) for run in opened]
    for run, users in zip(opened[1:], tables[1:], strict=True):
        _check_alike(opened[0], tables[0], run, users)
    methods = _group(opened, [_per_user(table) for table in tables])
    counted, uncounted = counted_methods(opened, tables[0], {method.kind for method in methods})
    pairs = [
        (second, first)
        for first, second in reversed(list(combinations((*counted, *methods), 2)))
        if first.kind != "random" and not (first.kind in COUNTING and second.kind in COUNTING)
    ]
    tests, seed_tests = pairwise_tests(pairs)
    return Comparison(
        methods=tuple(methods),
        tests=tests,
        seed_tests=seed_tests,
        differences=_differences(methods),
        evaluated_users=len(tables[0]["sampled.f2f"][0]),
        counted=tuple(counted),
        uncounted=tuple(uncounted),
        chance={
            measure.removesuffix(".f2f"): float(ndcg(np.zeros(len(listed), dtype=int), listed, 20).mean())
            for measure, (_, listed, _) in tables[0].items()
            if measure.endswith(".f2f")
        },
    )


def pairwise_tests(pairs: Sequence[tuple[Method, Method]]) -> tuple[tuple[PairedTest, ...], tuple[PairedTest, ...]]:
    """Paired tests of each pair on every measure that both have: over users averaged over seeds, and seeds apart.

    Holm's correction covers all of the former together.
    """
    tests = [test for first, second in pairs for test in _test_pair(first, second)]
    corrected = zip(tests, holm([test.p for test in tests]), strict=True)
    apart = tuple(test for first, second in pairs for test in _test_seeds(first, second))
    return tuple(replace(test, p_holm=p) for test, p in corrected), apart


def method_of(label: str, runs: Sequence[Run]) -> Method:
    """Finished runs of one configuration, one a seed, as a Method. Raises InputError where one is unfinished."""
    return _method(label, runs, [_per_user(read_ranks(run.path)) for run in runs])


def paired_test(first: Vector, second: Vector) -> tuple[float, float, float, float, float]:
    """Two-sided paired t-test of (U,) against (U,): difference, its 95% interval (low, high), t, p.

    Equal differences everywhere leave no variance: p is 1 if they are zero, else 0. One user alone gives p = 1.
    """
    from scipy.special import stdtr, stdtrit  # not scipy.stats, which takes a second to import

    gaps = first - second
    mean, freedom = float(gaps.mean()), len(gaps) - 1
    if freedom < 1:
        return mean, -math.inf, math.inf, 0.0, 1.0
    error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
    if error <= 1e-12 * abs(mean) or error == 0:
        return mean, mean, mean, math.copysign(math.inf, mean) if mean else 0.0, 0.0 if mean else 1.0
    t, reach = mean / error, float(stdtrit(freedom, 0.975)) * error
    return mean, mean - reach, mean + reach, t, float(2 * stdtr(freedom, -abs(t)))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, in the order given."""
    adjusted, worst = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        worst = max(worst, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = worst
    return adjusted


def _check_alike(reference: Run, expected: Ranks, run: Run, users: Ranks) -> None:
    """Raise InputError unless two runs were judged on the same data, split, candidates and users."""
    data = [each.manifest.get("data", {}) for each in (run, reference)]
    here, there = (str(each.get("fingerprint")) for each in data)
    if here != there:
        raise InputError(f"{run.path}: made from other data than {reference.path} ({here[:12]} against {there[:12]})")
    here, there = (str(each.get("split", each).get("fingerprint")) for each in data)
    if here != there:
        kinds = " against ".join(each.config.data.split.kind for each in (run, reference))
        raise InputError(f"{run.path}: made with another data.split than {reference.path} ({kinds})")
    seed, other = run.config.evaluation.candidate_seed, reference.config.evaluation.candidate_seed
    if seed != other:
        raise InputError(f"{run.path}: evaluation.candidate_seed is {seed}, but {other} in {reference.path}")
    for measure in users.keys() & expected.keys():
        if users[measure][0] != expected[measure][0]:
            raise InputError(f"{run.path}: evaluated on other users than {reference.path}; set evaluation.users alike")
        if users[measure][1] != expected[measure][1]:
            raise InputError(f"{run.path}: ranked against other candidates than {reference.path}; leave it out")


def _group(runs: Sequence[Run], users: Sequence[Mapping[str, Vector]]) -> list[Method]:
    """Runs that differ in the seed alone become one Method; in reading order."""
    keys = [_relevant(run) for run in runs]
    distinct = [key for index, key in enumerate(keys) if key not in keys[:index]]
    methods = []
    for key in sorted(distinct, key=lambda key: _position(key["method.kind"])):
        members = sorted((i for i in range(len(runs)) if keys[i] == key), key=lambda i: runs[i].config.seed)
        for left, right in pairwise(members):
            if runs[left].config.seed == runs[right].config.seed:
                same = f"same method and seed as {runs[left].path}"
                raise InputError(f"{runs[right].path}: {same}; leave one of the two out")
        label = _label(key, distinct)
        methods.append(_method(label, [runs[i] for i in members], [users[i] for i in members]))
    return methods


def _method(label: str, runs: Sequence[Run], users: Sequence[Mapping[str, Vector]]) -> Method:
    figures = [
        _numbers(run.results()) | {name: float(values.mean()) for name, values in own.items()}
        for run, own in zip(runs, users, strict=True)
    ]
    return Method(
        label=label,
        kind=runs[0].config.method.kind,
        seeds=tuple(run.config.seed for run in runs),
        runs=tuple(runs),
        values={name: tuple(each[name] for each in figures) for name in _shared(figures)},
        users={name: tuple(own[name] for own in users) for name in _shared(users)},
    )


def _per_user(ranks: Ranks) -> dict[str, Vector]:
    return {measure: values for measure, (_, _, values) in ranks.items()}


def _shared(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that all of them have, in the order of the first."""
    return [key for key in mappings[0] if all(key in other for other in mappings)]


def _relevant(run: Run) -> dict[str, str]:
    """The flattened configuration without what cannot change a figure."""
    flat = _flatten(run.config.model_dump(mode="json"))
    # What a run was put together from, by kind: the folders differ from seed to seed.
    flat |= {f"method.{name}": kind for name, kind in run.manifest.get("parts", {}).items()}
    # The fingerprint says which data it was; where the folder lay does not matter.
    return {key: str(value) for key, value in flat.items() if key not in _WITHOUT_EFFECT and key != "data.path"}


def _position(kind: str) -> int:
    order = (*_FIRST, "", *_LAST)
    return order.index(kind if kind in order else "")


def _label(key: Mapping[str, str], distinct: Sequence[Mapping[str, str]]) -> str:
    """The method's kind, and the settings that tell it from others of its kind."""
    rivals = [other for other in distinct if other["method.kind"] == key["method.kind"]]
    telling = [name for name in key if any(other.get(name) != key[name] for other in rivals)]
    return key["method.kind"] + (f" ({', '.join(f'{name}={key[name]}' for name in telling)})" if telling else "")


def _differences(methods: Sequence[Method]) -> dict[str, dict[str, str]]:
    """Settings in which methods that read the configuration differ, if their labels do not say so already."""
    keys = {method.label: _relevant(method.runs[0]) for method in methods if method.kind not in _READ_NO_PROMPT}
    names = dict.fromkeys(name for key in keys.values() for name in key if not name.startswith("method."))
    return {
        name: {label: key.get(name, "None") for label, key in keys.items()}
        for name in names
        if len({key.get(name) for key in keys.values()}) > 1 and not all(f"{name}=" in label for label in keys)
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping -> {"a.b": leaf}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """The numeric leaves of results.json."""
    return {
        key: float(value)
        for key, value in _flatten(results).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _test_pair(first: Method, second: Method) -> Iterable[PairedTest]:
    for measure in first.users:
        if measure in second.users:
            a, b = (np.mean(method.users[measure], axis=0) for method in (first, second))
            seeds = _seeds((first, second), measure)
            yield PairedTest(measure, first.label, second.label, len(a), *paired_test(a, b), seeds=seeds)


def _seeds(methods: Sequence[Method], measure: str) -> int:
    """The fewest seeds of some methods, those left out that no seed changes; a sequential model is changed by one."""
    sequential = measure.partition(".")[2] in SEQUENTIAL
    counts = [len(method.seeds) for method in methods if sequential or method.kind not in SEEDLESS]
    return min(counts, default=2)


def _test_seeds(first: Method, second: Method) -> Iterable[PairedTest]:
    """Equal seeds stand against each other; a method with one run, or none, stands against every seed of the other."""
    for seed in dict.fromkeys((*first.seeds, *second.seeds)):
        at = [
            method.seeds.index(seed) if seed in method.seeds else 0 if len(method.seeds) < 2 else None
            for method in (first, second)
        ]
        if at[0] is None or at[1] is None:
            continue
        for measure in first.users:
            if measure in second.users:
                a, b = first.users[measure][at[0]], second.users[measure][at[1]]
                yield PairedTest(measure, first.label, second.label, len(a), *paired_test(a, b), seed=seed)
