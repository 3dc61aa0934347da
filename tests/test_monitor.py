"""The live monitor: a collapse is said while it happens, a healthy training is left alone, and nothing is disturbed."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_job import make_config, without_clock

import vlm2rec.encode as encode
from vlm2rec.config import MonitorConfig
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.diagnostics.monitor import Look, Monitor, probe_steps
from vlm2rec.errors import InputError
from vlm2rec.job import run
from vlm2rec.methods.vlm import build_encoder
from vlm2rec.metrics import ndcg
from vlm2rec.runs import Run, metrics_lines, read_metrics

USERS, ITEMS = 30, 45


# When


def test_steps_are_log_spaced_from_before_the_first_to_after_the_last() -> None:
    assert probe_steps(1000, 32, MonitorConfig(probes=5)) == {0, 1, 10, 100, 1000}
    assert probe_steps(1000, 32, MonitorConfig(probes=2)) == {0, 1000}
    assert probe_steps(1000, 32, MonitorConfig(probes=0)) == frozenset()
    assert probe_steps(1, 2, MonitorConfig()) == {0, 1}
    assert len(probe_steps(100_000, 8, MonitorConfig())) == 10


@pytest.mark.parametrize("total", [1, 3, 20, 112, 400])
@pytest.mark.parametrize("batch_size", [8, 64])
def test_short_trainings_are_not_made_of_probes(total: int, batch_size: int) -> None:
    """Never more than one in four steps; by default about an eighth of the time, whatever that leaves."""
    assert len(probe_steps(total, batch_size, MonitorConfig(probes=1000))) <= max(2, total // 4)
    found = probe_steps(total, batch_size, MonitorConfig())
    assert {0, total} <= found and all(0 <= step <= total for step in found)
    cost = len(found) * (128 / batch_size / 3 + 1)
    assert len(found) == 2 or cost < 0.15 * total


@pytest.mark.parametrize(
    ("given", "says"), [({"probes": 1}, "shows no change"), ({"probes": 0, "stop": True}, "needs")]
)
def test_a_monitor_that_cannot_work_is_refused(tiny_dataset: Dataset, given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        make_config(tiny_dataset, Path("nano"), monitor=given)
    assert "\n" not in str(caught.value)


# What


class Made:
    """Vectors made by hand: an item is its own axis, a history points to the next item, as clearly as it is told to."""

    def __init__(self, split: Split, views: Sequence[str] = ("fused", "text", "image")) -> None:
        self.next = {tuple(split.history(u, "validation")): split.target(u, "validation") for u in range(split.n_users)}
        self.clear = dict.fromkeys(("text", "image"), 0.5)
        self.views = views

    def __call__(self, histories: Sequence[Sequence[int]]) -> Mapping[str, np.ndarray]:
        found = {}
        for number, view in enumerate(("text", "image")):
            rng = np.random.default_rng(number)
            noise = rng.standard_normal((len(histories), ITEMS))
            wanted = [self.next.get(tuple(history), history[-1]) for history in histories]
            alone = np.array([len(history) == 1 for history in histories])
            clear = np.where(alone, 1e3, self.clear[view])
            found[view] = (clear[:, None] * 4 * np.eye(ITEMS)[wanted] + noise).astype(np.float32)
        return {view: {"fused": found["text"] + found["image"], **found}[view] for view in self.views}


@pytest.fixture
def split(from_sequences: Callable[..., Dataset]) -> Split:
    rng = np.random.default_rng(1)
    return Split(from_sequences([rng.choice(ITEMS, rng.integers(5, 9), replace=False) for _ in range(USERS)], ITEMS))


def watch(split: Split, embed: Made, users: np.ndarray | None = None) -> Monitor:
    return Monitor(split, np.arange(split.n_users) if users is None else users, embed, 0, Path("runs/one"), looks=9)


def looks(monitor: Monitor, embed: Made, image: Sequence[float]) -> list[Look]:
    """One look a step, the pictures as clear as listed; what is remembered goes through JSON, as in a checkpoint."""
    found: list[Look] = []
    for step, clear in enumerate(image):
        embed.clear["image"] = clear
        memory = json.loads(json.dumps(found[-1].memory, allow_nan=False)) if found else {}
        found.append(monitor.look(10 * step, memory))
    return found


def test_figures_by_hand(split: Split) -> None:
    embed = Made(split)
    found = watch(split, embed).look(0, {}).figures
    targets = [split.target(user, "validation") for user in range(USERS)]
    pool = sorted(set(targets))
    items = {
        view: rows / np.linalg.norm(rows, axis=1, keepdims=True) for view, rows in embed([[i] for i in pool]).items()
    }
    histories = embed([split.history(user, "validation").tolist() for user in range(USERS)])
    for name, view in (("f2f", "fused"), ("t2f", "text"), ("v2f", "image")):
        above = []
        for user, own in enumerate(targets):
            scores = items["fused"] @ histories[view][user]
            rivals = [i not in {own, *split.train[user].tolist()} for i in pool]
            above.append(int((scores[rivals] > scores[pool.index(own)]).sum()))
        assert found[name] == pytest.approx(ndcg(above, [0] * USERS, 20).mean(), abs=1e-9)
    assert set(found) >= {"S_fused", "S_text", "S_image", "U_text", "U_image", "text_strong"}
    assert found["v2f"] < 1 and found["S_text"] > 1


def test_a_collapse_is_said_once_and_again_where_it_is_worse(split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    embed = Made(split)
    found = looks(watch(split, embed), embed, [0.5, 0.5, 0.25, 0.25, -1.0, -1.0, 0.5])
    assert [look.fallen for look in found] == [[], [], ["image"], ["image"], ["image"], ["image"], []]
    assert [len(look.warnings) for look in found] == [0, 0, 1, 0, 1, 0, 0]
    assert [look.in_a_row for look in found] == [0, 0, 1, 2, 3, 4, 0]
    for step, look in ((2, found[2]), (4, found[4])):
        (warning,) = look.warnings
        assert warning["modality"] == "image" and warning["users"] == USERS
        assert warning["level"] == pytest.approx(1 - 0.1 / 18)
        assert warning["difference"] == pytest.approx(look.figures["v2f"] - found[0].figures["v2f"])
        assert float(warning["low"]) < float(warning["difference"]) < float(warning["high"]) < 0
        assert found[step].figures["t2f"] == found[0].figures["t2f"]
    said = capsys.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 2
    first = said.err.splitlines()[0]
    assert first.startswith("warning: step 20: pictures have fallen below their start: v2f .")
    assert first.endswith(
        "against step 0, 30 validation users, corrected for 9 probes (a false alarm in at most 5% of trainings); see"
        " `vlm2rec diagnose runs/one`"
    )
    assert f"{found[2].figures['v2f']:.3f}".removeprefix("0") in first


def test_a_healthy_training_is_left_alone(split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures that gain, or lose no more than chance would have it."""
    embed = Made(split)
    found = looks(watch(split, embed), embed, [0.5, 0.51, 0.49, 0.6, 0.8])
    assert not any(look.fallen or look.warnings for look in found)
    assert found[4].figures["v2f"] > found[0].figures["v2f"]
    assert capsys.readouterr().err == ""


def test_texts_are_watched_as_pictures_are(split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    embed = Made(split)
    monitor = watch(split, embed)
    start = monitor.look(0, {})
    embed.clear["text"] = -1.0
    assert monitor.look(1, start.memory).fallen == ["text"]
    assert "texts have fallen below their start: t2f" in capsys.readouterr().err


def test_flipped_users_are_counted(split: Split) -> None:
    embed = Made(split)
    embed.clear = {"text": 5.0, "image": 0.0}
    monitor = watch(split, embed)
    start = monitor.look(0, {})
    embed.clear = {"text": 0.0, "image": 5.0}
    after = monitor.look(1, start.memory).figures
    assert (start.figures["text_strong"], after["text_strong"], after["flipped"]) == (1, 0, 1)


def test_one_view_alone_warns_of_nothing(split: Split) -> None:
    embed = Made(split, views=("fused",))
    found = looks(watch(split, embed), embed, [0.5, -9.0])
    assert set(found[1].figures) == {"users", "f2f", "S_fused"}
    assert found[1].figures["f2f"] < found[0].figures["f2f"] and not found[1].fallen


def test_the_last_event_is_never_looked_at(from_sequences: Callable[..., Dataset]) -> None:
    rng = np.random.default_rng(2)
    events = [rng.choice(ITEMS - 1, 7, replace=False).tolist() for _ in range(USERS)]
    other = [[*own[:-1], ITEMS - 1] for own in events]
    found = []
    for name, sequences in (("one", events), ("other", other)):
        split = Split(from_sequences([*sequences, list(range(ITEMS))], ITEMS, name))
        embed = Made(split)
        found.append(watch(split, embed, np.arange(USERS)).look(0, {}))
    assert found[0] == found[1]


def test_nobody_to_rank_is_no_error(from_sequences: Callable[..., Dataset]) -> None:
    split = Split(from_sequences([[0, 1, 2, 3], [1, 0, 2, 4], [0, 1, 3, 2]], 5))
    assert not watch(split, Made(split), np.array([0, 1])).able, "one target is all there is"
    assert watch(split, Made(split), np.array([0, 2])).able


# In a job


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return families.build("llava", tmp_path_factory.mktemp("backbones") / "llava")


def test_what_is_embedded_in_memory_is_what_the_encoder_gives(
    tiny_dataset: Dataset, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = build_encoder(make_config(tiny_dataset, llava))
    monkeypatch.setattr(encode, "_SHARD", 5)
    found = encode.embed(encoder.train(), tiny_dataset, [[item] for item in range(12)])
    with torch.inference_mode():
        expected = encoder.items(tiny_dataset, range(12))._asdict()
    assert found.keys() == expected.keys() and not encoder.training
    for name, vectors in found.items():
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected[name].numpy(), atol=2e-5)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        encode.embed(encoder, tiny_dataset, [[0]])


GIVEN: dict[str, Any] = {
    "training": {"epochs": 2, "users": 36, "batch_size": 4, "checkpoint_every": 3},
    "monitor": {"probes": 4, "users": 20},
}
STEPS = [0, 1, 4, 18]  # nine an epoch
GRADIENTS = {
    f"grad_{name}" for name in ("cos_text", "cos_image", "cos_between", "norm_total", "norm_text", "norm_image")
}
FOUND = {"users", "f2f", "t2f", "v2f", "S_text", "S_image", "S_fused", "U_text", "U_image", "text_strong"}


@pytest.fixture(scope="module")
def probed(tiny_dataset: Dataset, llava: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(make_config(tiny_dataset, llava, **GIVEN), tmp_path_factory.mktemp("probed") / "run").path


def lines(folder: Path) -> list[dict[str, Any]]:
    return [without_clock(line) for line in metrics_lines(folder / "metrics.jsonl")]


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def check_same(one: Path, other: Path) -> None:
    assert lines(one) == lines(other)
    first, second = adapter(one), adapter(other)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_run_says_what_it_was_probed_for(probed: Path) -> None:
    written = read_metrics(probed / "metrics.jsonl", "probe")
    assert [line["step"] for line in written] == STEPS
    for line in written:
        assert set(line) - {"flipped"} == {"kind", "step", "epoch", "seconds"} | GRADIENTS | FOUND
        assert all(math.isfinite(value) for value in line.values() if not isinstance(value, str))
    assert written[-1]["flipped"] >= 0
    assert written[0]["f2f"] != written[-1]["f2f"] and written[0]["grad_cos_text"] != written[-1]["grad_cos_text"]
    cost = json.loads((probed / "results.json").read_text())["cost"]["seconds"]
    assert cost["probes"] == pytest.approx(sum(line["seconds"] for line in written))


def test_probes_change_nothing(tiny_dataset: Dataset, llava: Path, tmp_path: Path, probed: Path) -> None:
    """Weights bit for bit, and every other line of the log; with LoRA's dropout, which is drawn at every step."""
    config = make_config(tiny_dataset, llava, **{**GIVEN, "monitor": {"probes": 0}})
    plain = run(config, tmp_path, until="train").path
    assert read_metrics(plain / "metrics.jsonl", "probe") == []
    assert lines(plain) == [line for line in lines(probed) if line["kind"] not in ("probe", "warning")]
    assert all(torch.equal(value, adapter(probed)[name]) for name, value in adapter(plain).items())


@pytest.mark.parametrize(("dies_at", "seen"), [(1, False), (2, True)])
def test_killed_while_probing(
    dies_at: int, seen: bool, tiny_dataset: Dataset, llava: Path, tmp_path: Path, probed: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    look, calls = Monitor.look, []

    def killed(self: Monitor, step: int, memory: Mapping[str, Any]) -> Look:
        calls.append(step)
        if step == STEPS[dies_at] and not seen:
            raise KeyboardInterrupt
        found = look(self, step, memory)
        if step == STEPS[dies_at]:
            raise KeyboardInterrupt
        return found

    config = make_config(tiny_dataset, llava, **GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr(Monitor, "look", killed)
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "run")
    assert calls == STEPS[: dies_at + 1]
    run(config, tmp_path / "run", until="train")
    check_same(tmp_path / "run", probed)


def falling(look: Callable[..., Look]) -> Callable[..., Look]:
    """Every look but the first finds that pictures have fallen."""

    def found(self: Monitor, step: int, memory: Mapping[str, Any]) -> Look:
        seen = look(self, step, {name: value for name, value in memory.items() if name == "start"})
        row = int(memory["in_a_row"]) + 1 if memory else 0
        warnings = [{"modality": "image", "difference": -0.1, "low": -0.2, "high": -0.05}] if row == 1 else []
        return replace(
            seen, fallen=["image"] if row else [], warnings=warnings, memory={**seen.memory, "in_a_row": row}
        )

    return found


@pytest.mark.parametrize("stop", [False, True])
def test_stop_ends_training_at_the_second_warning_and_for_good(
    stop: bool, tiny_dataset: Dataset, llava: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Monitor, "look", falling(Monitor.look))
    config = make_config(tiny_dataset, llava, **{**GIVEN, "monitor": {**GIVEN["monitor"], "stop": stop}})
    folder = run(config, tmp_path / "run", until="train").path
    written = [line["step"] for line in read_metrics(folder / "metrics.jsonl", "probe")]
    done = Run.open(folder).manifest["done"]["train"]
    assert read_metrics(folder / "metrics.jsonl", "warning") == [
        {"kind": "warning", "step": STEPS[1], "modality": "image", "difference": -0.1, "low": -0.2, "high": -0.05}
    ]
    if not stop:
        assert written == STEPS and "stopped" not in done
        return
    assert written == STEPS[:3] and done["steps"] == STEPS[2]
    assert done["stopped"] == {"step": STEPS[2], "modalities": ["image"]}
    (validated,) = read_metrics(folder / "metrics.jsonl", "validation")
    assert (validated["step"], validated["epoch"]) == (STEPS[2], 1), "what there is was not validated"
    before = (folder / "metrics.jsonl").read_bytes()
    run(config, folder)
    assert (folder / "metrics.jsonl").read_bytes() == before
    assert json.loads((folder / "results.json").read_text())["validation"] == done["validation"]


@pytest.mark.parametrize(("given", "keys"), [
    ({"prompt": {"fusion": "internal"}}, {"users", "f2f", "S_fused"}),
    ({"prompt": {"modalities": "text"}}, {"users", "f2f", "S_fused"}),
    ({"monitor": {"probes": 2, "gradients": False}}, FOUND),
])  # fmt: skip
def test_what_there_is_to_see(
    given: dict[str, Any], keys: set[str], tiny_dataset: Dataset, llava: Path, tmp_path: Path
) -> None:
    config = make_config(tiny_dataset, llava, "sft", training={"epochs": 1}, **given)
    written = read_metrics(run(config, tmp_path, until="train").path / "metrics.jsonl", "probe")
    assert [line["step"] for line in written] == [0, 2]
    assert all(set(line) - {"flipped"} == {"kind", "step", "epoch", "seconds"} | keys for line in written)
