"""Search on validation: train, look at N@20 on validation, keep the best. The test users are never looked at.

    study.db     an Optuna study, with one trial a run     trial-NNN/   the run directories
    trials.json  what came of every trial                  best.toml    the configuration of the best

Any number of processes share a search: each draws a point that nobody has drawn, and holds a lock while it trains on
it. A lock ends with its process, so a trial that is neither finished nor locked was stopped or killed: the next
process to look for work goes on with it, from its checkpoint. Locks and SQLite both need a local file system: on
one that several machines share, only one process may search in a folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from vlm2rec.errors import InputError
from vlm2rec.tune.space import TUNABLE, Search

__all__ = ["TUNABLE", "Search", "tune"]


def tune(
    path: Path | str,
    space: Sequence[str],
    overrides: Sequence[str],
    trials: int,
    out: Path | str,
    say: Callable[[str], None],
) -> Path:
    """Train at `trials` points of `space` (entries `section.key=a,b,c`), none twice; write the best one's `best.toml`.

    A search that was stopped goes on, and one with more trials begins with the same ones. Draws depend on the
    configuration's seed and on the trials before; what the first ten are depends on the seed alone. A trial that
    diverges, or whose values cannot be used together, is noted as failed, and the search goes on.

    Returns:
        `best.toml`; the folder, where other processes are at work and none of the trials has finished.

    Raises:
        InputError: the method reports no N@20 on validation, `space` is not understood, `out` holds another search, or
            no trial came to an end.
    """
    path, out = Path(path), Path(out)
    search = Search.read(path, space, overrides)
    if trials > search.size:
        say(f"--trials {trials}: the space has {search.size} points, so all {search.size} of them are trained")
    from vlm2rec.tune.study import Study  # imports Optuna

    study = Study(out, search)
    from vlm2rec.job import run  # imports torch: what can be wrong has been looked at by now

    while True:
        with study.claimed(trials) as trial:
            if trial is None:
                break
            if trial.goes_on:
                say(f"{trial.folder.name} was begun and not finished; it is taken up again")
            drawn = "  ".join(f"{key}={value}" for key, value in trial.point.items())
            try:
                run(trial.config, trial.folder, shared=out / ".shared", until="train")
            except (FloatingPointError, InputError) as error:
                if isinstance(error, InputError) and not (out / "best.toml").exists():
                    raise  # nothing has worked yet: it may well be all points, and is to be put right
                study.fail(trial, str(error))
                told = f"failed: {error}"
            else:
                told = f"N@20 {study.finish(trial):.4f}"
            say(f"[{trial.number + 1}/{min(trials, search.size)}] {told}  {drawn}")
    running = study.running()
    if running:
        say(f"not finished yet, since other processes are at work on them: {running} of the trials")
    if (out / "best.toml").exists():
        return out / "best.toml"
    if running:
        return out
    raise InputError(f"{out}: no trial has a result; all of them failed, as trials.json says; try other values")
