"""The one training loop, on Accelerate. It knows steps and parameters, not what is trained.

Everything random in step k is drawn from (seed, k), and a batch is a function of its step. So a checkpoint is the
trained parameters, the optimizer's moments and a step number, and a run continued from one ends with the same
weights as a run that was never stopped (bit for bit on a CPU).

Several processes run the loop alike, each with the weights of all: a step leaves the same gradients on every one of
them, and what validation and probes find is what the first one found. It alone writes; all continue from its files.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn

from vlm2rec import parallel
from vlm2rec.config import TrainingConfig
from vlm2rec.process import rank, world
from vlm2rec.progress import notice, progress
from vlm2rec.training.checkpoints import Checkpoints, State
from vlm2rec.training.log import Log, MetricsLog, Silence

_SECONDS_BETWEEN_CHECKPOINTS = 120.0  # where steps are slow, `checkpoint_every` steps would be too much to lose

Step = Callable[[int, Callable[[Tensor], None]], Mapping[str, float]]
"""`step(k, backward)`: make the gradients of batch k by calling `backward` on a loss, return figures to log.

Every process calls it at the same time, with the same random numbers to draw; the gradients must come out the same."""

Validate = Callable[[int], Mapping[str, float]]
"""`validate(epoch)`: figures of the present weights; the one called `score` chooses the best epoch. Every process calls
it, and those that the first one gets count."""


@dataclass(frozen=True)
class Probed:
    """What a probe found.

    Attributes:
        figures: for the log.
        memory: what the next probe is told; JSON, since it is kept with the checkpoints.
        lines: further lines of the log, a kind and its values each.
        stop: why training is to end here, for whoever reads the outcome; JSON. None: it goes on.
    """

    figures: Mapping[str, float]
    memory: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[tuple[str, Mapping[str, float | str]]] = ()
    stop: Mapping[str, Any] | None = None


Probe = Callable[[int, Mapping[str, Any]], Probed]
"""`probe(step, memory)`: look at the weights after so many steps, in evaluation mode, and leave them as they are."""


def fit(
    module: nn.Module,
    step: Step,
    *,
    steps_per_epoch: int,
    settings: TrainingConfig,
    seed: int,
    folder: Path | str,
    validate: Validate | None = None,
    no_decay: Iterable[nn.Parameter] = (),
    patience: int | None = None,
    probe: Probe | None = None,
    probe_steps: Collection[int] = (),
    title: str = "training",
) -> State:
    """Train the parameters of `module` that want a gradient; leave it with the best epoch's weights.

    `folder` gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`; with checkpoints in it, training goes on from
    the last one. Without `validate` the last weights are the best; with `patience`, training ends where so many
    epochs in a row were none better. `probe` is called when `probe_steps` steps are done, and at the end; where it
    asks to stop, that epoch is validated as far as it has come, and is the last. Raises FloatingPointError where a
    gradient is not finite: one step further, no weight would be.
    """
    parallel.start()
    # Said outright: what a user has told `accelerate config` would scale losses that are pushed back in two steps.
    accelerator = Accelerator(
        mixed_precision="no", gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
    )
    module.to(accelerator.device)
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    exempt = {id(parameter) for parameter in no_decay}
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained.values() if id(p) not in exempt], "weight_decay": settings.weight_decay},
            {"params": [p for p in trained.values() if id(p) in exempt], "weight_decay": 0.0},
        ],
        lr=settings.lr,
    )
    optimizer = accelerator.prepare(optimizer)
    folder = Path(folder)
    checkpoints = Checkpoints(folder / "checkpoints", trained, optimizer)
    state = checkpoints.resume()
    parallel.barrier()  # before anything is written anew
    total = settings.epochs * steps_per_epoch
    if state.step and not _is_over(state, total, patience):
        notice(f"{title}: continues at step {state.step} of {total}")
    log = MetricsLog(folder / "metrics.jsonl", state.step, state.validated, state.probed) if rank() == 0 else Silence()
    saved_at = time.monotonic()
    with progress(title, total, state.step) as tell:
        while True:
            epoch = math.ceil(state.step / steps_per_epoch)  # that the last step belongs to
            whole = state.step % steps_per_epoch == 0
            if epoch > state.validated and (whole or state.stopped is not None):
                tell(state.step, "validating")
                module.eval()
                check_equal(trained)
                if _validate(validate, state, epoch, log, title):
                    checkpoints.save_best(epoch)
                checkpoints.save(state)
            over = _is_over(state, total, patience)
            if probe is not None and state.probed < state.step and (over or state.step in probe_steps):
                tell(state.step, "probing")
                module.eval()
                stop = _probe(probe, state, epoch, log)
                state.stopped = None if over or stop is None else {"step": state.step, **stop}
                checkpoints.save(state)
                continue
            if over:
                break
            began = time.monotonic()
            torch.manual_seed(_mix(seed, state.step))
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(state.step, total, settings)
            module.train()
            figures = dict(step(state.step, accelerator.backward))
            norm = accelerator.clip_grad_norm_(list(trained.values()), settings.clip)
            if not math.isfinite(norm):
                raise FloatingPointError(
                    f"{title}: the gradient of step {state.step + 1} is not finite; lower the learning rate, or use"
                    " float32"
                )
            optimizer.step()
            optimizer.zero_grad()
            state.step += 1
            seconds = time.monotonic() - began
            state.seconds += seconds
            figures |= {"lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm), "memory_gib": memory_gib()}
            figures["samples_per_s"] = figures.pop("samples", float(settings.batch_size)) / seconds
            epoch = math.ceil(state.step / steps_per_epoch)
            log.write("train", state.step, {"epoch": epoch, **figures})
            each = state.seconds / state.step * steps_per_epoch
            tell(state.step, f"loss {figures.get('loss', math.nan):.3f}, epoch {epoch}, {each:.0f} s an epoch")
            due = time.monotonic() - saved_at > _SECONDS_BETWEEN_CHECKPOINTS
            if due or state.step % settings.checkpoint_every == 0 or state.step % steps_per_epoch == 0:
                checkpoints.save(state)
                saved_at = time.monotonic()
    log.close()
    parallel.barrier()
    checkpoints.load_best(state.best_epoch)
    module.eval()
    return state


def _is_over(state: State, total: int, patience: int | None) -> bool:
    """Whether there is no step left to take: all were, a probe has ended training, or patience has."""
    impatient = patience is not None and state.validated - state.best_epoch >= patience
    return state.step >= total or state.stopped is not None or impatient


def _validate(validate: Validate | None, state: State, epoch: int, log: Log, title: str) -> bool:
    """Validate, log and remember what came of it; return whether the epoch is the best so far."""
    figures = {} if validate is None else parallel.broadcast(dict(validate(epoch)))
    if validate is not None:
        if not math.isfinite(figures["score"]):
            raise FloatingPointError(f"{title}: validation gives {figures['score']}; lower the learning rate")
        log.write("validation", state.step, {"epoch": epoch, **figures})
    better = not state.best or figures["score"] > state.best["score"]
    if better:
        state.best, state.best_epoch = figures, epoch
    state.validated = epoch
    return better


def _probe(probe: Probe, state: State, epoch: int, log: Log) -> Mapping[str, Any] | None:
    """Probe, log and remember what was found; return why training is to end, if it is."""
    began = time.monotonic()
    found = parallel.broadcast(probe(state.step, state.memory))
    seconds = time.monotonic() - began
    log.write("probe", state.step, {"epoch": epoch, **found.figures, "seconds": seconds})
    for kind, values in found.lines:
        log.write(kind, state.step, values)
    state.probed, state.memory = state.step, dict(found.memory)
    state.probe_seconds += seconds
    return found.stop


def learning_rate(step: int, total: int, settings: TrainingConfig) -> float:
    """Linear warm-up over the first `warmup` share of the steps, then linear decay to 0 (or constant)."""
    warmup = max(1, round(settings.warmup * total))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * (total - step) / max(1, total - warmup)


def check_equal(trained: Mapping[str, nn.Parameter]) -> None:
    """Raise RuntimeError where the weights of two processes differ in a bit: they would learn apart from there on."""
    if world() == 1:
        return
    digest = hashlib.blake2b(digest_size=16)
    for parameter in trained.values():
        digest.update(parameter.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    if parallel.anyone(parallel.broadcast(digest.hexdigest()) != digest.hexdigest()):
        raise RuntimeError("the processes no longer have the same weights; this is an error of the program")


def memory_gib() -> float:
    """Peak memory so far in GiB: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _mix(seed: int, step: int) -> int:
    """One number for a (seed, step) pair."""
    return (seed * 1_000_003 + step * 7_919 + 12_345) % 2**63
