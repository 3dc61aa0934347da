"""Training steps of all ways in turns: first that they agree, then how long each takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import sentences
import torch
from measure import Read, flops, peak, seconds, spread
from shared import Bench
from torch import Tensor, nn
from ways import Ours, Plain, Stock, Way, train

from vlm2rec.training.batches import Samples

_SAME = 1e-4  # losses in float32, and lengths of gradients
_CHECKED = 4  # samples


class Rivals:
    """The models that the other ways run: loaded once for all batch sizes."""

    def __init__(self, bench: Bench, library: bool) -> None:
        self.stock = Stock(bench)
        self.library = sentences.Sentences(bench) if library else None

    def ways(self, bench: Bench, samples: Samples, own: bool = True) -> list[Way]:
        """Each with its activations kept, and with all but a layer's computed again."""
        found: list[Way] = [Plain(bench, samples, self.stock, checkpointing) for checkpointing in (True, False)]
        if self.library is not None:
            for checkpointing in (False, True):
                found.append(sentences.ByLibrary(bench, samples, self.library, checkpointing, own))
        return found


def check(bench: Bench, rivals: Rivals, targets: int) -> str | None:
    """None if all ways give the loss and the gradients of ours; else which does not, and by how much.

    `bench` is in float32 without dropout. One target a sample, by all ways; all prefixes, by the
    usual loop on the histories and targets that our batch is made of.
    """
    batches = [(Ours(bench, _CHECKED), "one target"), (Ours(bench, targets, branched=True), "all prefixes")]
    for own, kind in batches:
        expected, slopes = _gradients(own, bench)
        ways = rivals.ways(bench, own.samples, own=False)
        for way in ways if own is batches[0][0] else ways[:1]:
            loss, found = _gradients(way, bench)
            error = abs(loss - expected) / max(1.0, abs(expected))
            turned = float((found - slopes).norm() / slopes.norm())
            print(f"  {kind:13}{way.name:38}{loss:.6f} (ours {expected:.6f}), gradients off by {turned:.1e}")
            if not (error < _SAME and turned < 10 * _SAME):
                return f"{way.name}: loss {loss}, ours {expected}; gradients off by {turned}"
    return None


def _gradients(way: Way, bench: Bench) -> tuple[float, Tensor]:
    """Loss of the first batch, and all gradients of the adapters in one row, in the order of their names."""
    _forget(bench, [way.model])
    loss = way.ready(0)()
    slopes = {
        name[name.index("layers.") :]: weight.grad
        for name, weight in way.model.named_parameters()
        if "lora_" in name and weight.grad is not None
    }
    found = torch.cat([slopes[name].flatten().float() for name in sorted(slopes)])
    _forget(bench, [way.model])
    return loss, found


def coarse(bench: Bench, rivals: Rivals) -> str:
    """By how much ours and the usual loop differ in the dtype that is timed, without dropout."""
    own = Ours(bench, _CHECKED)
    other = Plain(bench, own.samples, rivals.stock, checkpointing=False)
    for way in (own, other):
        way.model.eval()
    (one, slopes), (two, found) = (_gradients(way, bench) for way in (own, other))
    bench.encoder.train()
    train(rivals.stock.model)
    turned = float((found - slopes).norm() / slopes.norm())
    return f"loss {one:.6f}, usual loop {two:.6f}, off by {abs(one - two) / abs(two):.1e}; gradients by {turned:.1e}"


@dataclass
class Measured:
    """One way at one batch size: of each repeat its seconds; of one step the rest. `lost` says why there are none."""

    name: str
    samples: int
    tokens: float = 0.0
    read: float = 0.0
    flops: int = 0
    gib: float = 0.0
    seconds: list[float] = field(default_factory=list)
    lost: str = ""

    @property
    def rates(self) -> list[float]:
        """Targets a second of each repeat."""
        return [self.samples / one for one in self.seconds]


def in_turns(bench: Bench, ways: Sequence[Way], repeats: int, limit: float, known: dict[str, float]) -> list[Measured]:
    """`repeats` steps of every way, in turns, after one that warms up; two, where `limit` seconds are over by then.

    `known`: operations a token, of other batch sizes and for others.
    """
    device, began = bench.encoder.device, time.monotonic()
    found = [_first(bench, way, known) for way in ways]
    print(f"  first steps and counts took {time.monotonic() - began:.0f} s")
    for repeat in range(repeats):
        if repeat > 1 and time.monotonic() - began > limit:
            break
        order = list(zip(ways, found, strict=True))
        for way, measured in order if repeat % 2 else reversed(order):
            if measured.lost:
                continue
            step = way.ready(repeat + 1)
            try:
                measured.seconds.append(seconds(step, device))
            except torch.OutOfMemoryError:
                measured.lost = "out of memory"
            _forget(bench, [way.model])
    return found


def _first(bench: Bench, way: Way, known: dict[str, float]) -> Measured:
    """Warm up; then take a step's memory, tokens and operations. `known`: operations a token, by way."""
    batch, device = way.samples.batch(0), bench.encoder.device
    measured = Measured(way.name, len(batch.histories), sum(group.tokens for group in bench.groups(batch)))
    read = Read(way.model)
    try:
        if isinstance(way, Ours) and bench.asked.compile:  # in two steps, for all lengths
            for number in (1, 2):
                way.ready(number)()
                _forget(bench, [way.model])
        read.tokens = 0
        measured.gib = peak(way.ready(0), way.model, device)
        measured.read = read.tokens
        _forget(bench, [way.model])
        try:
            measured.flops = flops(way.ready(0))  # apart: its counter holds on to what checkpointing computes again
        except torch.OutOfMemoryError:  # so it needs more, as layers that are not compiled do; a smaller batch tells
            measured.flops = round(known.get(way.name, 0.0) * measured.read)
        known[way.name] = measured.flops / measured.read
    except torch.OutOfMemoryError:
        measured.lost = "out of memory"
    read.close()
    _forget(bench, [way.model])
    return measured


def _forget(bench: Bench, models: Sequence[nn.Module]) -> None:
    for model in (bench.objective, *models):
        model.zero_grad(set_to_none=True)


def table(measured: Sequence[Measured], most: float) -> str:
    """One line a way: the first two are ours, one target a sample and all prefixes.

    The last columns say by how much each of the two is faster, in targets a second, pair by pair of repeats. `most`:
    operations a second of a large product.
    """
    lines = [
        f"{'':38}{'targets/s':>10}{'min-max':>14}{'tokens/s':>10}{'read':>7}{'TFLOP':>8}{'TFLOP/s':>9}{'of top':>7}"
        f"{'peak GiB':>9}{'  ours':>10}{'min-max':>14}{'prefixes':>10}{'min-max':>14}"
    ]
    for each in measured:
        if each.lost or not each.seconds:
            lines.append(f"{each.name:38}{each.lost or 'not reached':>24}")
            continue
        middle = float(np.median(each.seconds))
        rate = each.flops / middle
        row = f"{each.name:38}{spread(each.rates, 2)}{each.tokens / middle:10.0f}"
        row += f"{100 * (each.read / each.tokens - 1):+6.0f}%{each.flops / 1e12:8.3f}{rate / 1e12:9.3f}"
        row += f"{100 * rate / most:6.0f}%{each.gib:9.2f}"
        for ours in measured[:2]:
            ratios = [fast / slow for fast, slow in zip(ours.rates, each.rates, strict=False)]
            row += spread(ratios, 2) if ratios and ours is not each and not ours.lost else " " * 24
        lines.append(row.rstrip())
    return "\n".join(lines)


def profiled(way: Way, number: int, path: Path) -> None:
    """Write torch's profile of one step: the twenty dearest operations."""
    from torch.profiler import ProfilerActivity, profile

    step = way.ready(number)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with profile(activities=kinds, record_shapes=False) as taken:
        step()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    with path.open("a") as file:
        file.write(f"{way.name}\n{taken.key_averages().table(sort_by=key, row_limit=20, max_name_column_width=60)}\n")
