"""Layers through torch.compile: the same numbers, and no new compilation for every batch."""

from functools import partialmethod
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from vlm2rec.config import BackboneConfig, LoraSettings, PromptConfig
from vlm2rec.data.dataset import Catalogue
from vlm2rec.encoder import Encoder

SHELF: Catalogue = SimpleNamespace(titles=["a red lamp", "a blue mug", "tea", "a shirt"], pictures=[None] * 4)
BATCHES = [[[0, 1], [2], [1, 2, 0]], [[3]], [[0, 1, 2], [1], [3, 0], [2, 2]], [[1], [2, 3]], [[0], [1], [2], [3]]]


def test_layers_are_compiled_once_for_all_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounterWithBackend("aot_eager")  # inductor would take a minute, and needs a C++ compiler
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=counter))
    folder = families.build("llava", tmp_path / "llava")
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        settings = BackboneConfig(path=str(folder), compile=compiled)
        encoder = Encoder.build(settings, PromptConfig(modalities="text"))
        encoder.add_lora(LoraSettings(rank=2, dropout=0.0), seed=0)
        encoder.train()
        counts = []
        for batch in BATCHES:
            encoder(encoder.prompts(SHELF, batch)).tanh().sum().backward()
            counts.append(counter.frame_count)
        found.append([p.grad for p in encoder.parameters() if p.grad is not None])
    assert 0 < counts[1] == counts[-1], "compiled again for a batch of another size"
    assert len(found[0]) == len(found[1]) == 2 * 2 * 7
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
