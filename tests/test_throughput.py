"""The benchmark of throughput: that it runs, that all ways agree before it times them, and that it counts right."""

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, tokenizer
from torch._subclasses.fake_tensor import FakeTensorMode

FOLDER = Path(__file__).parents[1] / "benchmarks" / "throughput"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield FOLDER
    for path in FOLDER.glob("*.py"):  # these modules have common names: they go when the test does
        if not path.stem.startswith("_"):
            sys.modules.pop(path.stem, None)


def test_all_ways_agree_and_are_timed(
    benchmark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = "--parts steps --batch 2 --history 3 --repeats 1 --products 12 --threads 1"
    monkeypatch.setattr(sys, "argv", ["throughput", *asked.split()])
    threads = torch.get_num_threads()
    runpy.run_path(str(benchmark), run_name="__main__")
    torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    losses = re.findall(r"(\d\.\d{6}) \(ours (\d\.\d{6})\)", printed)
    assert len(losses) >= 3
    assert all(abs(float(one) - float(ours)) < 1e-4 for one, ours in losses)
    last = printed[printed.rindex("batch 2:") :]
    rates = {name: float(rate) for name, rate in re.findall(r"^(\S.*?) {2,}(\d+\.\d\d) ", last, re.MULTILINE)}
    assert {"vlm2rec", "vlm2rec, all prefixes", "usual loop", "usual loop, checkpointing"} <= rates.keys()
    assert min(rates.values()) > 0


def test_operations_of_a_small_model_are_those_counted_by_hand(benchmark: Path) -> None:
    from counting import counted

    words = tokenizer()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = FAMILIES["qwen2"][0](len(words), words.get_vocab()).model
    rows, length = 3, 7
    ids = torch.ones(rows, length, dtype=torch.long)
    found = counted(model, lambda: model(input_ids=ids, use_cache=False).last_hidden_state[:, -1])
    config: Any = model.config
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    scores = config.num_hidden_layers * rows * length**2 * config.hidden_size  # of all heads together
    assert found.tokens == rows * length
    assert found.forward == 2 * linear * rows * length + 4 * scores
    assert found.backward == 4 * linear * rows * length + 10 * scores
    assert found.weights == sum(weight.nbytes for weight in [*model.parameters(), *model.buffers()])
    assert found.peak > found.weights + found.kept


def test_layers_computed_again_take_less_memory_and_more_operations(benchmark: Path) -> None:
    from counting import counted

    words = tokenizer()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = FAMILIES["qwen2"][0](len(words), words.get_vocab()).model.train()
    ids = torch.ones(8, 64, dtype=torch.long)

    def embed() -> torch.Tensor:
        states: torch.Tensor = model(input_ids=ids, use_cache=False).last_hidden_state
        return states[:, -1]

    kept = counted(model, embed)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = counted(model, embed)
    assert again.forward == kept.forward
    assert kept.backward < again.backward <= kept.backward + kept.forward
    activations = kept.peak - kept.weights
    assert again.peak - again.weights < 0.75 * activations  # one layer of two, and what goes in and out of them
    assert again.kept < 0.25 * kept.kept


@pytest.mark.parametrize("fake", [False, True])
def test_memory_is_that_of_the_tensors_alive(benchmark: Path, fake: bool) -> None:
    from memory import Live

    mode = FakeTensorMode() if fake else torch.enable_grad()
    with mode:
        inputs, first, second = torch.randn(50, 8), torch.randn(8, 8), torch.randn(8, 8)
    weights = [first.requires_grad_(), second.requires_grad_()]
    with Live([inputs, *weights]) as live:
        hidden = torch.relu(inputs @ first)
        assert (live.now, live.peak) == (50 * 8 * 4, 2 * 50 * 8 * 4)  # what relu was given is gone
        loss = (hidden @ second).sum()
        assert live.now == 50 * 8 * 4 + 4
        loss.backward()
        assert live.now == 50 * 8 * 4 + 4 + 2 * 8 * 8 * 4
