"""What training says while it runs: `metrics.jsonl` and TensorBoard."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from vlm2rec.runs import metrics_lines, write_text


class Log(Protocol):
    """Where figures go."""

    def write(self, kind: str, step: int, values: Mapping[str, float | str]) -> None:
        """Take one line."""

    def close(self) -> None:
        """There will be no more."""


class Silence:
    """The log of a process that does not write it."""

    def write(self, kind: str, step: int, values: Mapping[str, float | str]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class MetricsLog:
    """A `metrics.jsonl`, and the same scalars for TensorBoard beside it.

    Continuing from step `after`, with `validated` epochs validated and the last probe at step `probed`, drops the
    lines beyond: they will be written again, the same.
    """

    def __init__(self, path: Path, after: int = 0, validated: int = 0, probed: int = -1) -> None:
        kept = [
            line
            for line in metrics_lines(path)
            if line["step"] <= (probed if line["kind"] in ("probe", "warning") else after)
            and (line["kind"] != "validation" or line["epoch"] <= validated)
        ]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(path.parent / "tensorboard"), purge_step=after + 1)

    def write(self, kind: str, step: int, values: Mapping[str, float | str]) -> None:
        """Add one line; TensorBoard gets the numbers of it."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()
