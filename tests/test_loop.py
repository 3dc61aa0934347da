"""The training loop: killed anywhere and continued, it ends where it would have."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import without_clock
from torch import Tensor, nn

import vlm2rec.training.checkpoints as checkpoints
import vlm2rec.training.log as log
import vlm2rec.training.loop as loop
from vlm2rec.config import TrainingConfig
from vlm2rec.runs import metrics_lines, read_metrics
from vlm2rec.training.loop import Probed, State, fit, learning_rate

STEPS_PER_EPOCH = 3


class Killed(BaseException):
    """No handler of the program catches it, as none catches SIGKILL."""


def settings(**given: Any) -> TrainingConfig:
    return TrainingConfig.model_validate(
        {"epochs": 3, "lr": 0.05, "batch_size": 4, "checkpoint_every": 2, "warmup": 0.2, **given}
    )


def make_module() -> nn.ModuleDict:
    torch.manual_seed(11)
    net = nn.Sequential(nn.Linear(3, 5), nn.Dropout(0.4), nn.Tanh(), nn.Linear(5, 1))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    return nn.ModuleDict({"net": net, "frozen": frozen, "scale": nn.ParameterList([torch.ones(1)])})


def make_step(module: nn.ModuleDict, die: Callable[[int], None] = lambda k: None) -> loop.Step:
    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        inputs = torch.from_numpy(np.random.default_rng(k).standard_normal((4, 3), dtype=np.float32))
        loss = (module["net"](inputs) * module["scale"][0] - inputs.sum(1, keepdim=True)).square().mean()
        backward(loss)
        die(k)
        return {"loss": float(loss.detach())}

    return step


def make_validate(module: nn.ModuleDict) -> loop.Validate:
    """The middle epoch is the best: what is kept is neither the first nor the last."""

    def validate(epoch: int) -> Mapping[str, float]:
        assert not module.training
        value = float(module["net"](torch.ones(1, 3)).detach())
        return {"score": [0.1, 0.9, 0.5][epoch - 1], "value": value}

    return validate


def train(folder: Path, die: Callable[[int], None] = lambda k: None, **given: Any) -> tuple[State, nn.ModuleDict]:
    module = make_module()
    state = fit(
        module,
        make_step(module, die),
        steps_per_epoch=STEPS_PER_EPOCH,
        settings=settings(**given),
        seed=5,
        folder=folder,
        validate=make_validate(module),
        no_decay=[module["scale"][0]],
    )
    return state, module


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [without_clock(line) for line in metrics_lines(folder / "metrics.jsonl")]


def check_same(folder: Path, found: tuple[State, nn.ModuleDict], expected: tuple[State, nn.ModuleDict, Path]) -> None:
    state, module, straight = expected
    assert (found[0].step, found[0].validated, found[0].best_epoch, found[0].best) == (
        state.step, state.validated, state.best_epoch, state.best,
    )  # fmt: skip
    for name, value in weights(module).items():
        assert torch.equal(found[1].state_dict()[name], value), name
    assert lines(folder) == lines(straight)
    last = [sorted((where / "checkpoints").glob("step-*"))[-1] for where in (folder, straight)]
    for file in ("trained.safetensors", "optimizer.safetensors"):
        one, other = (load_file(where / file) for where in last)
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[State, nn.ModuleDict, Path]:
    folder = tmp_path_factory.mktemp("straight")
    return *train(folder), folder


def test_what_accelerate_was_told_elsewhere_changes_nothing(
    uninterrupted: tuple[State, nn.ModuleDict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` hands a user's own defaults on."""
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    check_same(tmp_path, train(tmp_path), uninterrupted)


def test_it_learns_and_says_so(uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    state, module, folder = uninterrupted
    inputs = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    before, after = (
        float((each["net"].eval()(inputs) - inputs.sum(1, keepdim=True)).square().mean().detach())
        for each in (make_module(), module)
    )
    assert after < before
    written = read_metrics(folder / "metrics.jsonl", "train")
    assert [line["step"] for line in written] == list(range(1, 10))
    assert [line["epoch"] for line in written] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert state.step == 9 and state.seconds > 0
    assert all(line["samples_per_s"] > 0 and line["memory_gib"] > 0 for line in written)
    order = [(line["kind"], line["step"]) for line in lines(folder)]
    assert [step for kind, step in order if kind == "validation"] == [3, 6, 9]
    assert order.index(("validation", 3)) == order.index(("train", 3)) + 1
    assert list((folder / "tensorboard").iterdir())


@pytest.mark.parametrize("k", range(9))
def test_killed_in_any_step(k: int, tmp_path: Path, uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    def die(step: int) -> None:
        if step == k:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, die)
    lost = k - max(s for s in range(k + 1) if s % 2 == 0 or s % 3 == 0)
    done: list[int] = []
    check_same(tmp_path, train(tmp_path, done.append), uninterrupted)
    assert done == list(range(k - lost, 9)), "more was done again than checkpoint_every allows"


def test_killed_again_and_again(tmp_path: Path, uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    for k in range(9):

        def die(step: int, k: int = k) -> None:
            if step == k:
                raise Killed

        with pytest.raises(Killed):
            train(tmp_path, die)
    check_same(tmp_path, train(tmp_path), uninterrupted)


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator["Killer"]:
    found = Killer()
    with monkeypatch.context() as patch:
        found.arm(patch)
        yield found


class Killer:
    """Counts what touches the disk; from the n-th time on, nothing is done any more and `Killed` is raised.

    So clean-up that a kill would not allow (`finally`, `except`) does not happen either, and a folder that is being
    removed is left half there.
    """

    def __init__(self) -> None:
        self.at = 10**9
        self.count = 0

    def arm(self, patch: pytest.MonkeyPatch) -> None:
        rmtree, remove = shutil.rmtree, os.unlink

        def half_rmtree(path: Path, *args: Any, **kwargs: Any) -> None:
            if self.count + 1 == self.at:
                for file in sorted(Path(path).rglob("*"))[:1]:
                    remove(file)
            self._tick()
            rmtree(path, *args, **kwargs)

        for owner, name in (
            (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (tempfile, "mkstemp"), (tempfile, "mkdtemp"),
            (checkpoints, "write_weights"),
        ):  # fmt: skip
            patch.setattr(owner, name, self._watched(getattr(owner, name)))
        patch.setattr(os, "fsync", self._watched(lambda handle: None))
        patch.setattr(log, "SummaryWriter", MagicMock())  # slow, and nothing is read from it
        patch.setattr(loop.MetricsLog, "write", self._watched(loop.MetricsLog.write, after=True))
        patch.setattr(shutil, "rmtree", half_rmtree)

    def _watched(self, function: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if after and self.count + 1 == self.at:
                function(*args, **kwargs)
            self._tick()
            return function(*args, **kwargs)

        return watched

    def _tick(self) -> None:
        self.count += 1
        if self.count >= self.at:
            raise Killed


def test_killed_at_any_touch_of_the_disk(tmp_path: Path, killer: Killer) -> None:
    """Every file operation of a run is a place to die at: plain checkpoints, validations, a best and a better one."""
    straight = tmp_path / "straight"
    expected = (*train(straight, epochs=2), straight)
    total = killer.count
    assert total > 60
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        killer.count, killer.at = 0, n
        with pytest.raises(Killed):
            train(folder, epochs=2)
        killer.at = 10**9
        check_same(folder, train(folder, epochs=2), expected)


def test_done_is_done(tmp_path: Path, uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    train(tmp_path)
    asked: list[int] = []
    check_same(tmp_path, train(tmp_path, asked.append), uninterrupted)
    assert asked == []


def test_another_seed_draws_another_dropout(tmp_path: Path, uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    module = make_module()
    fit(
        module, make_step(module), steps_per_epoch=STEPS_PER_EPOCH, settings=settings(), seed=6, folder=tmp_path
    )  # fmt: skip
    assert lines(tmp_path)[0]["loss"] != lines(uninterrupted[2])[0]["loss"]


def test_the_best_epoch_is_kept(uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    state, module, folder = uninterrupted
    assert state.best_epoch == 2 and state.best["score"] == 0.9
    validated = read_metrics(folder / "metrics.jsonl", "validation")
    value = float(module["net"](torch.ones(1, 3)).detach())
    assert value == validated[1]["value"]
    assert len({line["value"] for line in validated}) == 3
    kept = load_file(folder / "checkpoints" / "best-epoch-0002" / "trained.safetensors")
    assert all(torch.equal(kept[name], module.state_dict()[name]) for name in kept)
    assert not module.training


def test_a_tie_keeps_the_earlier_epoch_and_no_validation_the_last(tmp_path: Path) -> None:
    module = make_module()
    given: dict[str, Any] = {"steps_per_epoch": STEPS_PER_EPOCH, "settings": settings(), "seed": 5}
    tied = fit(module, make_step(module), folder=tmp_path / "a", validate=lambda epoch: {"score": 0.5}, **given)
    assert tied.best_epoch == 1
    module = make_module()
    last = fit(module, make_step(module), folder=tmp_path / "b", **given)
    assert last.best_epoch == 3
    saved = sorted((tmp_path / "b" / "checkpoints").glob("step-*"))[-1]
    assert all(torch.equal(v, module.state_dict()[n]) for n, v in load_file(saved / "trained.safetensors").items())


def test_checkpoints_hold_what_is_trained_and_no_pickle(uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    folder = uninterrupted[2] / "checkpoints"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
    last = [path for path in folder.glob("step-*")]
    assert len(last) == 1 and len(list(folder.glob("best-*"))) == 1
    names = set(load_file(last[0] / "trained.safetensors"))
    assert names == {"net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias", "scale.0"}
    assert json.loads((last[0] / "state.json").read_text())["step"] == 9


def test_weight_decay_spares_the_exempt(tmp_path: Path) -> None:
    """With gradients of 0, AdamW does nothing but decay."""
    module = nn.ModuleDict({"a": nn.ParameterList([torch.ones(3)]), "b": nn.ParameterList([torch.ones(3)])})

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        backward((module["a"][0] * 0).sum() + (module["b"][0] * 0).sum())
        return {"loss": 0.0}

    given = settings(schedule="constant", weight_decay=0.5, lr=0.1, epochs=1, warmup=0)
    fit(module, step, steps_per_epoch=4, settings=given, seed=0, folder=tmp_path, no_decay=[module["b"][0]])
    torch.testing.assert_close(module["a"][0].detach(), torch.full((3,), (1 - 0.1 * 0.5) ** 4))
    assert torch.equal(module["b"][0].detach(), torch.ones(3))


def test_frozen_parameters_stay(uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    fresh, trained = make_module().state_dict(), uninterrupted[1].state_dict()
    moved = {name for name in fresh if not torch.equal(fresh[name], trained[name])}
    assert moved == {"net.0.weight", "net.0.bias", "net.3.weight", "net.3.bias", "scale.0"}


def test_gradients_are_clipped(tmp_path: Path) -> None:
    """One step of AdamW forgets the gradient's size, so it is looked at before the step, as the norm in the log."""
    module = nn.ModuleDict({"a": nn.ParameterList([torch.zeros(4)])})
    slopes: list[float] = []

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        backward((module["a"][0] * torch.tensor([30.0, 40.0, 0.0, 0.0])).sum())
        slopes.append(float(module["a"][0].grad.norm()))  # type: ignore[union-attr]
        return {"loss": 0.0}

    fit(module, step, steps_per_epoch=1, settings=settings(epochs=1, clip=2.0), seed=0, folder=tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl", "train")[0]["grad_norm"] == pytest.approx(50)
    moments = load_file(next((tmp_path / "checkpoints").glob("step-*")) / "optimizer.safetensors")
    first = next(value for name, value in moments.items() if name.endswith(".exp_avg"))
    assert float(first.norm()) == pytest.approx(0.1 * 2.0, rel=1e-4)  # (1 - beta1) of the clipped gradient


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_ends_it(value: float, tmp_path: Path) -> None:
    """Before it reaches the weights, so the last checkpoint is sound."""
    module = nn.ModuleDict({"a": nn.ParameterList([torch.ones(2)])})

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        backward((module["a"][0] * (value if k == 3 else 1.0)).sum())
        return {"loss": 0.0}

    with pytest.raises(FloatingPointError, match=r"step 4 is not finite; lower the learning rate"):
        fit(module, step, steps_per_epoch=2, settings=settings(), seed=0, folder=tmp_path)
    assert torch.isfinite(module["a"][0]).all()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", "train")] == [1, 2, 3]


def test_learning_rate_by_hand() -> None:
    given = settings(lr=1.0, warmup=0.2)  # 2 of 10 steps
    rates = [learning_rate(k, 10, given) for k in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    constant = [learning_rate(k, 10, settings(lr=1.0, warmup=0.2, schedule="constant")) for k in range(10)]
    np.testing.assert_allclose(constant, [0.5] + [1] * 9)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 0.99])
def test_learning_rates_are_positive_and_reach_the_top_once(total: int, warmup: float) -> None:
    given = settings(lr=2.0, warmup=warmup)
    rates = np.array([learning_rate(k, total, given) for k in range(total)])
    assert (rates > 0).all() and rates.max() == pytest.approx(2.0)
    top = int(rates.argmax())
    assert (np.diff(rates[: top + 1]) > 0).all() and (np.diff(rates[top:]) <= 0).all()


def test_the_rate_in_use_is_the_rate_of_the_schedule(uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    written = read_metrics(uninterrupted[2] / "metrics.jsonl", "train")
    assert [line["lr"] for line in written] == [learning_rate(k, 9, settings()) for k in range(9)]


def test_training_ends_when_no_epoch_is_better_for_a_while(tmp_path: Path) -> None:
    scores = [0.1, 0.9, 0.5, 0.6, 0.95, 1.0]

    def run(folder: Path, dies_at: int | None = None) -> State:
        module = make_module()

        def die(k: int) -> None:
            if k == dies_at:
                raise Killed

        def validate(epoch: int) -> Mapping[str, float]:
            return {"score": scores[epoch - 1]}

        return fit(
            module, make_step(module, die), steps_per_epoch=STEPS_PER_EPOCH, settings=settings(epochs=6), seed=5,
            folder=folder, validate=validate, patience=2,
        )  # fmt: skip

    state = run(tmp_path / "straight")
    assert (state.validated, state.best_epoch, state.step) == (4, 2, 4 * STEPS_PER_EPOCH)
    with pytest.raises(Killed):
        run(tmp_path / "killed", dies_at=3 * STEPS_PER_EPOCH + 1)
    assert run(tmp_path / "killed").step == state.step
    assert run(tmp_path / "killed").step == state.step  # and again, when all is done


# Probes


STOPS_AT = 5


class Prober:
    """Finds a number that hangs on the weights, and remembers all it found; may want to stop in mid-epoch."""

    def __init__(self, module: nn.ModuleDict, stops: bool = False) -> None:
        self.module, self.stops, self.asked = module, stops, list[int]()

    def __call__(self, step: int, memory: Mapping[str, Any]) -> Probed:
        assert not self.module.training
        self.asked.append(step)
        torch.rand(3), torch.manual_seed(step)  # a probe that draws must not change what is trained
        value = float(self.module["net"](torch.ones(1, 3)).detach())
        seen = [*memory.get("seen", []), value]
        lines = [("warning", {"what": "low", "value": value})] if step % 2 else []
        stop = {"because": "so"} if self.stops and step >= STOPS_AT else None
        return Probed({"value": value, "first": seen[0], "count": len(seen)}, {"seen": seen}, lines, stop)


PROBE_STEPS = (0, 2, 3, STOPS_AT, 7)


def train_probed(
    folder: Path, die: Callable[[int], None] = lambda k: None, stops: bool = False, **given: Any
) -> tuple[State, nn.ModuleDict, Prober]:
    module = make_module()
    prober = Prober(module, stops)
    state = fit(
        module,
        make_step(module, die),
        steps_per_epoch=STEPS_PER_EPOCH,
        settings=settings(**given),
        seed=5,
        folder=folder,
        validate=make_validate(module),
        no_decay=[module["scale"][0]],
        probe=prober,
        probe_steps=PROBE_STEPS,
    )
    return state, module, prober


def test_probes_are_made_when_asked_for_and_at_the_end(tmp_path: Path) -> None:
    state, _, prober = train_probed(tmp_path)
    assert prober.asked == [*PROBE_STEPS, 9]
    order = [(line["kind"], line["step"], line["epoch"]) for line in lines(tmp_path) if line["kind"] != "warning"]
    assert order[0] == ("probe", 0, 0) and order[-1] == ("probe", 9, 3)
    assert order.index(("train", 2, 1)) + 1 == order.index(("probe", 2, 1)) == order.index(("train", 3, 1)) - 1
    assert order.index(("validation", 3, 1)) + 1 == order.index(("probe", 3, 1)), "an epoch is validated first"
    probed = read_metrics(tmp_path / "metrics.jsonl", "probe")
    assert [line["count"] for line in probed] == [1, 2, 3, 4, 5, 6]
    assert {line["first"] for line in probed} == {probed[0]["value"]}, "memory is not handed on"
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl", "warning")] == [3, 5, 7, 9]
    assert all(line["seconds"] > 0 for line in probed)
    assert state.probe_seconds == pytest.approx(sum(line["seconds"] for line in probed))
    assert state.stopped is None


def test_probes_change_nothing(tmp_path: Path, uninterrupted: tuple[State, nn.ModuleDict, Path]) -> None:
    state, module, _ = train_probed(tmp_path)
    for name, value in weights(uninterrupted[1]).items():
        assert torch.equal(module.state_dict()[name], value), name
    assert (state.best, state.best_epoch) == (uninterrupted[0].best, uninterrupted[0].best_epoch)
    rest = [line for line in lines(tmp_path) if line["kind"] not in ("probe", "warning")]
    assert rest == lines(uninterrupted[2])


def test_their_time_is_not_that_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    module = make_module()

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        now[0] += 1
        return make_step(module)(k, backward)

    def probe(step: int, memory: Mapping[str, Any]) -> Probed:
        now[0] += 100
        return Probed({})

    state = fit(
        module, step, steps_per_epoch=3, settings=settings(), seed=5, folder=tmp_path, probe=probe, probe_steps=[1]
    )  # fmt: skip
    assert (state.seconds, state.probe_seconds) == (9, 200)


def test_a_stop_validates_what_there_is_and_is_kept(tmp_path: Path) -> None:
    state, module, prober = train_probed(tmp_path, stops=True)
    assert prober.asked == [0, 2, 3, STOPS_AT]
    assert (state.step, state.validated, state.stopped) == (STOPS_AT, 2, {"step": STOPS_AT, "because": "so"})
    assert (state.best_epoch, state.best["score"]) == (2, 0.9), "the part of the second epoch is better than the first"
    assert lines(tmp_path)[-1] == {
        "kind": "validation", "step": STOPS_AT, "epoch": 2, "score": 0.9,
        "value": float(module["net"](torch.ones(1, 3)).detach()),
    }  # fmt: skip
    before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*.*")}
    done: list[int] = []
    again, same, asked = train_probed(tmp_path, done.append, stops=True)
    assert (again.step, again.stopped, done, asked.asked) == (STOPS_AT, state.stopped, [], [])
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in weights(module).items())
    assert before == {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*.*")}


def test_a_stop_at_the_end_stops_nothing(tmp_path: Path) -> None:
    module = make_module()
    state = fit(
        module, make_step(module), steps_per_epoch=3, settings=settings(), seed=5, folder=tmp_path,
        probe=lambda step, memory: Probed({}, stop={"because": "so"} if step == 9 else None), probe_steps=[9],
    )  # fmt: skip
    assert (state.step, state.stopped) == (9, None)


@pytest.mark.parametrize(("stops", "epochs"), [(False, 1), (True, 2)])
def test_killed_at_any_touch_of_the_disk_while_probing(
    stops: bool, epochs: int, tmp_path: Path, killer: Killer
) -> None:
    """No probe's line is missing or there twice, what it remembers is what it would have, and a stop holds."""
    straight = tmp_path / "straight"
    expected = train_probed(straight, stops=stops, epochs=epochs)
    total = killer.count
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        killer.count, killer.at = 0, n
        with pytest.raises(Killed):
            train_probed(folder, stops=stops, epochs=epochs)
        killer.at = 10**9
        found = train_probed(folder, stops=stops, epochs=epochs)
        check_same(folder, found[:2], (*expected[:2], straight))
        assert (found[0].memory, found[0].stopped) == (expected[0].memory, expected[0].stopped)
