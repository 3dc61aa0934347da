"""What training leaves while it runs, to go on from: weights, the optimizer's moments, and how far it has come."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlm2rec.damage import TENSORS, listing
from vlm2rec.errors import InputError
from vlm2rec.process import rank
from vlm2rec.runs import read_json, replacing_folder, write_json
from vlm2rec.weights import read_into, read_weights, write_weights

_WEIGHTS, _MOMENTS = "trained.safetensors", "optimizer.safetensors"


@dataclass
class State:
    """How far training has come."""

    step: int = 0
    validated: int = 0  # epochs
    best_epoch: int = 0
    best: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0  # of steps
    probed: int = -1  # the step of the last probe
    probe_seconds: float = 0.0
    memory: dict[str, Any] = field(default_factory=dict)  # of the probe
    stopped: dict[str, Any] | None = None  # why, where a probe ended training before its time


class Checkpoints:
    """`step-N-E/` folders to continue from, E epochs validated (the last one is kept), and `best-epoch-N/`.

    `step-N-E-probed/` is the same after a probe.
    """

    def __init__(self, folder: Path, trained: Mapping[str, nn.Parameter], optimizer: Any) -> None:
        self.folder = folder
        self._trained = trained
        self._optimizer = optimizer
        self._advice = f"remove {folder} to train from the start"

    def save(self, state: State) -> None:
        """Write a checkpoint, then drop the ones before it.

        Neither validation nor a probe moves the step, so they are in the name too: no checkpoint ever takes another's
        place, and whenever a kill comes, the last one by name is whole.
        """
        if rank() > 0:
            return
        probed = "-probed" if state.probed == state.step else ""
        path = self.folder / f"step-{state.step:08d}-{state.validated:04d}{probed}"
        with replacing_folder(path) as temporary:
            write_weights(temporary / _WEIGHTS, self._trained)
            moments = self._moments()
            write_weights(temporary / _MOMENTS, moments)
            write_json(temporary / "state.json", {**asdict(state), TENSORS: {_MOMENTS: listing(moments)}})
        self._keep_only(path, "step-*")
        self._keep_only(self._best(state.best_epoch), "best-epoch-*")  # now: until here the state named the one before

    def resume(self) -> State:
        """Load the last checkpoint into the parameters and the optimizer; a fresh State where there is none.

        Raises:
            InputError: a file of the checkpoint is gone or damaged, or of another training.
        """
        found = sorted(self.folder.glob("step-*"))
        if not found:
            return State()
        saved = read_json(found[-1] / "state.json", "checkpoint")
        moments = saved.pop(TENSORS, {}).get(_MOMENTS)
        if saved.keys() - asdict(State()).keys():
            raise InputError(f"{found[-1] / 'state.json'}: is no checkpoint of this version; {self._advice}")
        state = State(**saved)
        read_into(found[-1] / _WEIGHTS, self._trained, self._advice)
        self._read_moments(found[-1] / _MOMENTS, moments)
        if state.best_epoch:  # better found out now than at the end
            read_weights(self._best(state.best_epoch) / _WEIGHTS, listing(self._trained), self._advice)
        return state

    def save_best(self, epoch: int) -> None:
        """Keep the present weights as the best so far."""
        if rank() > 0:
            return
        with replacing_folder(self._best(epoch)) as temporary:
            write_weights(temporary / _WEIGHTS, self._trained)

    def load_best(self, epoch: int) -> None:
        """Put the weights of the best epoch back into the parameters. Raises InputError where they are gone."""
        if epoch:
            read_into(self._best(epoch) / _WEIGHTS, self._trained, self._advice)

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-epoch-{epoch:04d}"

    def _moments(self) -> dict[str, Tensor]:
        entries = self._optimizer.state_dict()["state"]
        return {f"{index}.{key}": value for index, moments in entries.items() for key, value in moments.items()}

    def _read_moments(self, path: Path, wanted: Mapping[str, str] | None) -> None:
        """Hand the optimizer its moments. A parameter without a gradient has none, so `wanted` names those there were.

        Checkpoints of earlier versions have no such list, None: what their file holds is taken.
        """
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in read_weights(path, wanted, self._advice).items():
            index, key = name.split(".", 1)
            entries.setdefault(int(index), {})[key] = value
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": entries, "param_groups": groups})

    def _keep_only(self, path: Path, pattern: str) -> None:
        for other in self.folder.glob(pattern):
            if other != path:
                shutil.rmtree(other)
