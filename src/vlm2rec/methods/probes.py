"""What SFT and VLM2Rec are probed for while they train: gradients by modality, and what each modality finds."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlm2rec.backbones.packing import Prompt
from vlm2rec.config import Config
from vlm2rec.data.splits import Split, sample_users
from vlm2rec.diagnostics.gradients import Loss, compared, gradients, without_dropout
from vlm2rec.diagnostics.monitor import Monitor
from vlm2rec.encode import embed
from vlm2rec.encoder import Encoder
from vlm2rec.objectives import InfoNCE, Objective, Views, comparable
from vlm2rec.runs import Run
from vlm2rec.training.batches import Samples, objective_arguments
from vlm2rec.training.loop import Probe, Probed

_VIEWS = ("text", "image")
_STOP_AFTER = 2  # probes in a row


def build_probe(
    run: Run, split: Split, encoder: Encoder, objective: Objective, samples: Samples, users: np.ndarray, looks: int
) -> Probe | None:
    """The probe that `monitor` asks for, None where it asks for none.

    `users` are those of validation, `looks` how many probes are planned after that of step 0.
    """
    settings, seed = run.config.monitor, run.config.evaluation.candidate_seed
    if settings.probes == 0:
        return None
    some = users[sample_users(len(users), settings.users, seed, "monitor")]
    monitor = Monitor(split, some, partial(embed, encoder, split.dataset), seed, run.path, looks)
    two = settings.gradients and encoder.passes == _VIEWS
    aligned = Alignment(run.config, split, encoder, objective, samples) if two else None

    def probe(step: int, memory: Mapping[str, Any]) -> Probed:
        figures = aligned.look() if aligned is not None else {}
        if not monitor.able:
            return Probed(figures)
        look = monitor.look(step, memory)
        stop = {"modalities": look.fallen} if settings.stop and look.in_a_row >= _STOP_AFTER else None
        return Probed(figures | look.figures, look.memory, [("warning", line) for line in look.warnings], stop)

    return probe


class Alignment:
    """How each modality's own gradient lies to the update, on one batch without dropout (Fig. 1b).

    The batch is the first of the epoch behind the last: training samples, drawn as training draws them, but no batch
    that it has had.
    """

    def __init__(self, config: Config, split: Split, encoder: Encoder, objective: Objective, samples: Samples) -> None:
        self._config, self._split, self._encoder, self._objective = config, split, encoder, objective
        self._batch = samples.batch(config.training.epochs * samples.steps_per_epoch)

    def look(self) -> dict[str, float]:
        """Cosines and lengths at the present weights, by the adapters alone; see `compared`."""
        encoder, part = self._encoder, self._config.training.micro_batch
        sides = (self._batch.histories, [[item] for item in self._batch.targets])
        queries, targets = (_by_view(encoder.prompts(self._split.dataset, rows)) for rows in sides)
        inputs = {view: queries[view] + targets[view] for view in _VIEWS}
        there = [encoder.there(self._split.dataset, rows) for rows in sides]
        adapters = [value for name, value in encoder.named_parameters() if value.requires_grad and "lora_" in name]
        with without_dropout(encoder):  # in parts of as many prompts as those of training
            found = gradients(encoder, inputs, self._losses(there), adapters, part and part * 2 * len(_VIEWS))
        return compared(found)

    def _losses(self, there: Sequence[Tensor | None]) -> dict[str, Loss]:
        """The method's objective, and InfoNCE where histories and items have one view alone.

        `there` is `Encoder.there` of the histories and of the items.
        """
        config, encoder, count = self._config, self._encoder, len(self._batch.histories)
        arguments = objective_arguments(self._batch, self._split, config.objective.logq, encoder.device)
        infonce = InfoNCE(config.objective.temperature)

        def total(vectors: Mapping[str, Tensor]) -> Tensor:
            text, image = (vectors[view] for view in _VIEWS)
            query = encoder.assemble(torch.cat([text[:count], image[:count]]), there[0])
            target = encoder.assemble(torch.cat([text[count:], image[count:]]), there[1])
            value: Tensor = self._objective(query, target, *arguments)
            return value

        def alone(view: str, vectors: Mapping[str, Tensor]) -> Tensor:
            sides = vectors[view][:count], vectors[view][count:]
            query, target = (  # a view that is not there is zero, as `assemble` has it
                side if known is None else side * known[:, _VIEWS.index(view), None]
                for side, known in zip(sides, there, strict=True)
            )
            negatives, positive, log_q = arguments
            among = comparable(query, target, negatives, positive)
            value: Tensor = infonce(Views(query), Views(target), among, positive, log_q)
            return value

        return {"total": total, **{view: partial(alone, view) for view in _VIEWS}}


def _by_view(prompts: list[Prompt]) -> dict[str, list[Prompt]]:
    """The prompts of an external fusion, which come pass by pass."""
    half = len(prompts) // 2
    return dict(zip(_VIEWS, (prompts[:half], prompts[half:]), strict=True))
