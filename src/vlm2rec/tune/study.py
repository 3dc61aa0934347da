"""A folder of trials that several processes share: an Optuna study, a run directory a trial, and locks."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import URL
from sqlalchemy.exc import DatabaseError

from vlm2rec.config import Config, config_toml
from vlm2rec.errors import InputError
from vlm2rec.runs import Run, difference, locked, locked_if_free, write_json, write_text
from vlm2rec.tune.draw import draw
from vlm2rec.tune.space import Search

_NAME = "validation N@20"
_DIVERGED = 0.0
"""What draws take for the N@20 of a trial that failed: the worst there is."""


@dataclass(frozen=True)
class Trial:
    """One point of the search, claimed by this process."""

    number: int
    point: dict[str, str]
    config: Config
    folder: Path
    goes_on: bool
    """Whether another process, or this one earlier, has begun it."""


class Study:
    """The search in a folder. Every look at it and every change is made by one process at a time."""

    def __init__(self, out: Path, search: Search) -> None:
        """Open the study, or begin one; trials that stand in the folder already belong to it.

        Raises:
            InputError: the folder holds another search, or something else.
        """
        self.out, self.search = out, search
        if out.exists() and not out.is_dir():
            raise InputError(f"{out}: is a file; give another --out")
        found = _trials_in(out)  # looked at before anything is written
        points = {number: search.point_of(run.config, run.path) for number, run in found.items()}
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # it would tell of every trial
        with self._alone():
            try:
                self._study = optuna.create_study(
                    storage=URL.create("sqlite", database=str(out / "study.db")).render_as_string(),
                    study_name=_NAME,
                    direction="maximize",
                    load_if_exists=True,
                )
                self._check_same()
                known = {_number(trial) for trial in self._study.get_trials(deepcopy=False)}
            except DatabaseError:
                raise InputError(
                    f"{out / 'study.db'}: is damaged; remove it, and it is made anew of the trials in the folder"
                ) from None
            for number in sorted(found.keys() - known):
                done = found[number].manifest["done"].get("train")
                value = None if done is None else float(done["validation"]["N@20"])
                state = TrialState.RUNNING if done is None else TrialState.COMPLETE
                self._add(number, points[number], state, value)

    @contextmanager
    def claimed(self, trials: int) -> Iterator[Trial | None]:
        """A trial that is this process's own until the block ends: one that was left unfinished, or a new one.

        None where `trials` have been begun, or no point is left, and those not finished have a process.
        """
        with ExitStack() as held:
            with self._alone():
                trial = self._left(held) or self._new(held, trials)
            yield trial

    def finish(self, trial: Trial) -> float:
        """Note what validation says of a trial; N@20."""
        value = float(Run.open(trial.folder).manifest["done"]["train"]["validation"]["N@20"])
        with self._alone():
            self._study.tell(self._frozen(trial.number).number, value)
            self._write()
        return value

    def fail(self, trial: Trial, reason: str) -> None:
        """Note that a trial came to nothing, and why."""
        with self._alone():
            self._note_failed(trial.number, reason)
            self._study.tell(self._frozen(trial.number).number, state=TrialState.FAIL)
            self._write()

    def running(self) -> int:
        """How many trials are not finished."""
        with self._alone():
            return len(self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)))

    def _left(self, held: ExitStack) -> Trial | None:
        """A trial that was begun, by a process that is no more."""
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            number = _number(trial)
            if held.enter_context(locked_if_free(self._lock(number))):
                return self._trial(number, dict(trial.params), goes_on=True)
        return None

    def _new(self, held: ExitStack, trials: int) -> Trial | None:
        """A trial at a point that has not been tried."""
        while True:
            begun = self._study.get_trials(deepcopy=False)
            tried = {self.search.index(trial.params): _value(trial) for trial in begun}
            if len(begun) >= trials or len(tried) >= self.search.size:
                return None
            number = 1 + max((_number(trial) for trial in begun), default=-1)
            point = self.search.point(draw(self.search, tried, number))
            try:
                trial = self._trial(number, point, goes_on=False)
            except InputError as error:  # values that are right alone, but not together
                self._note_failed(number, str(error))
                self._add(number, point, TrialState.FAIL)
            else:
                held.enter_context(locked(self._lock(number)))
                self._add(number, point, TrialState.RUNNING)
                return trial

    def _trial(self, number: int, point: dict[str, str], goes_on: bool) -> Trial:
        return Trial(number, point, self.search.config(point), self._folder(number), goes_on)

    def _add(self, number: int, point: dict[str, str], state: TrialState, value: float | None = None) -> None:
        self._study.add_trial(
            create_trial(
                state=state,
                value=value,
                params=point,
                distributions={key: CategoricalDistribution(listed) for key, listed in self.search.choices.items()},
                user_attrs={"trial": number},
            )
        )
        if state.is_finished():
            self._write()

    def _note_failed(self, number: int, reason: str) -> None:
        self._study.set_user_attr(f"trial {number} failed", reason)

    def _frozen(self, number: int) -> FrozenTrial:
        return next(trial for trial in self._study.get_trials(deepcopy=False) if _number(trial) == number)

    def _write(self) -> None:
        """`trials.json` and `best.toml`, of what is finished."""
        done = sorted(self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)), key=_number)
        rows = [{"trial": _number(trial), **trial.params, **self._figures(trial)} for trial in done]
        best = max(rows, key=lambda row: float(row["N@20"]), default=None)
        reasons = self._study.user_attrs
        failed = [
            {"trial": _number(trial), **trial.params, "reason": reasons.get(f"trial {_number(trial)} failed", "")}
            for trial in self._study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        ]
        if best is not None:
            point = {key: best[key] for key in self.search.choices}
            write_text(self.out / "best.toml", config_toml(self.search.config(point)))
        written = {"trials": rows, "best": None if best is None else best["trial"]}
        write_json(self.out / "trials.json", written | ({"failed": failed} if failed else {}))

    def _figures(self, trial: FrozenTrial) -> dict[str, Any]:
        """What validation found; N@20 alone where somebody has removed the trial's folder."""
        folder = self._folder(_number(trial))
        if not (folder / "manifest.json").exists():
            return {"N@20": trial.value}
        return dict(Run.open(folder).manifest["done"]["train"]["validation"])

    def _check_same(self) -> None:
        """Note what is searched, or compare it with what is noted."""
        asked = {
            "config": self.search.base.model_dump(mode="json"),
            "space": {key: list(listed) for key, listed in self.search.choices.items()},
        }
        noted = self._study.user_attrs.get("search")
        if noted is None:
            self._study.set_user_attr("search", json.dumps(asked))
        elif different := difference(json.loads(noted), asked):
            raise InputError(f"{self.out}: is another search ({different}); give another --out, or remove the folder")

    def _alone(self) -> Any:
        return locked(self.out / ".locks" / "study")

    def _lock(self, number: int) -> Path:
        return self.out / ".locks" / f"trial-{number:03d}"

    def _folder(self, number: int) -> Path:
        return self.out / f"trial-{number:03d}"


def _number(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["trial"])


def _value(trial: FrozenTrial) -> float | None:
    return _DIVERGED if trial.state == TrialState.FAIL else trial.value


def _trials_in(out: Path) -> dict[int, Run]:
    """Number -> run, of the trials in a folder; `vlm2rec` had no studies before."""
    found = {}
    for manifest in out.glob("trial-*/manifest.json"):
        if named := re.fullmatch(r"trial-(\d+)", manifest.parent.name):
            found[int(named[1])] = Run.open(manifest.parent)
    return found
