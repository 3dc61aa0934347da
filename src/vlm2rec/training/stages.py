"""Several trainings of one module in a row, each in a folder of its own; killed anywhere, they go on.

NAME/metrics.jsonl, tensorboard/, checkpoints/   of a stage at work, as `fit` leaves them
NAME/stage.json                                  of a finished one: steps, seconds, validation
NAME/trained.safetensors                         of the last finished one: what the next starts from
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlm2rec.config import TrainingConfig
from vlm2rec.damage import damage
from vlm2rec.progress import notice
from vlm2rec.runs import read_json, replacing, write_json
from vlm2rec.training.loop import Step, Validate, fit
from vlm2rec.weights import read_into, write_weights

_DONE = "stage.json"
_WEIGHTS = "trained.safetensors"


@dataclass(frozen=True)
class Stage:
    """One training: what `fit` needs, and how the module is made ready for it."""

    name: str
    step: Step
    steps_per_epoch: int
    settings: TrainingConfig
    prepare: Callable[[], None]
    validate: Validate | None = None


def fit_stages(module: nn.Module, stages: Sequence[Stage], folder: Path | str, seed: int, title: str) -> None:
    """Run what is left of the stages, in order; leaves the module with the weights of the last one.

    The parameters that want a gradient are trained, the same in every stage.
    """
    folder = Path(folder)
    finished = [stage for stage in stages if (folder / stage.name / _DONE).exists()]
    if finished and damage(folder / finished[-1].name / _WEIGHTS):
        notice(f"{folder}: what {finished[-1].name} had learned is gone, so training begins anew")
        for stage in stages:
            shutil.rmtree(folder / stage.name, ignore_errors=True)
        finished = []
    if finished:
        _tidy(finished, folder)
        read_into(folder / finished[-1].name / _WEIGHTS, _trained(module))
    for stage in stages[len(finished) :]:
        stage.prepare()
        own = folder / stage.name
        state = fit(
            module,
            stage.step,
            steps_per_epoch=stage.steps_per_epoch,
            settings=stage.settings,
            seed=seed,
            folder=own,
            validate=stage.validate,
            title=f"{title} {stage.name}",
        )
        figures = {name: value for name, value in state.best.items() if name != "score"}
        with replacing(own / _WEIGHTS) as temporary:
            write_weights(temporary, _trained(module))
        validation = {**figures, "epoch": state.best_epoch} if stage.validate else {}
        write_json(own / _DONE, {"steps": state.step, "seconds": state.seconds, "validation": validation})
        finished.append(stage)
        _tidy(finished, folder)


def stage_records(stages: Sequence[Stage], folder: Path) -> dict[str, dict[str, Any]]:
    """What the finished stages left to be known: `steps`, `seconds`, `validation`, by name."""
    return {stage.name: read_json(folder / stage.name / _DONE, "finished stage") for stage in stages}


def drop_weights(stages: Sequence[Stage], folder: Path) -> None:
    """Remove what is kept to go on from, once the outcome stands elsewhere."""
    for stage in stages:
        (folder / stage.name / _WEIGHTS).unlink(missing_ok=True)
        shutil.rmtree(folder / stage.name / "checkpoints", ignore_errors=True)


def _tidy(finished: Sequence[Stage], folder: Path) -> None:
    """Keep of the finished stages the weights of the last."""
    drop_weights(finished[:-1], folder)
    shutil.rmtree(folder / finished[-1].name / "checkpoints", ignore_errors=True)


def _trained(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
