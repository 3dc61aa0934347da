"""What all ways of training are given: one data set, one backbone, one objective, the same batches."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from vlm2rec.backbones.packing import Prompt
from vlm2rec.backbones.recompute import recompute
from vlm2rec.config import Config, parse_config
from vlm2rec.data.dataset import Dataset
from vlm2rec.data.splits import Split
from vlm2rec.encoder import Encoder
from vlm2rec.methods.vlm import build_encoder, build_objective
from vlm2rec.training.batches import Batch, Samples


@dataclass(frozen=True)
class Asked:
    """What is measured: prepared data, backbone folder or name, method, items of a history; and how ours runs.

    `compile`: layers through torch.compile. `mlp`: feed-forward parts computed again for the backward pass.
    """

    data: Path
    backbone: str
    method: str
    history: int
    compile: bool = False
    mlp: bool = False

    def config(self, batch: int, branched: bool = False, dtype: str = "auto", dropout: float = 0.2) -> Config:
        training: dict[str, Any] = {"batch_size": batch, "samples": "last"}
        training["gradient_checkpointing"] = "mlp" if self.mlp else False
        backbone = {"path": self.backbone, "dtype": dtype, "compile": self.compile, "lora": {"dropout": dropout}}
        if branched:
            training |= {"samples": "all", "prefixes": "branched"}
        return parse_config(
            {
                "preset": "small",
                "data": {"path": str(self.data), "max_history": self.history},
                "method": {"kind": self.method},
                "backbone": backbone,
                "training": training,
            }
        )


class Bench:
    """One encoder with adapters that are not the identity, its objective, and batches of any size."""

    def __init__(self, asked: Asked, dtype: str = "auto", dropout: float = 0.2) -> None:
        self.asked, self._dtype, self._dropout = asked, dtype, dropout
        config = self.config(8)
        self.split = Split(Dataset.load(asked.data), asked.history)
        self.encoder: Encoder = build_encoder(config)
        self.objective = build_objective(config).to(self.encoder.device)
        self.encoder.add_lora(config.backbone.lora, seed=0)
        recompute(self.encoder.backbone, config.training.gradient_checkpointing)
        wake(self.encoder)
        self.encoder.train()

    def config(self, batch: int, branched: bool = False) -> Config:
        return self.asked.config(batch, branched, self._dtype, self._dropout)

    def samples(self, batch: int, branched: bool = False) -> Samples:
        return Samples(self.split, self.config(batch, branched).training, seed=0)

    def lora(self) -> LoraConfig:
        """A copy of the adapters' settings, for a model of the same names."""
        assert self.encoder.adapter is not None
        return copy.deepcopy(self.encoder.adapter.peft_config["default"])

    def groups(self, batch: Batch) -> list["Group"]:
        """The batch's prompts, pass by pass: of the histories, then of the targets."""
        found = []
        for rows in (batch.histories, [[item] for item in batch.targets]):
            prompts = self.encoder.prompts(self.split.dataset, rows)
            for number, modality in enumerate(self.encoder.passes):
                some = prompts[number * len(rows) : (number + 1) * len(rows)]
                shown = [item for row in rows for item in row] if modality != "text" else []
                found.append(Group(some, shown))
        return found


@dataclass(frozen=True)
class Group:
    """Prompts of one pass over a few rows, and the items whose pictures they show, in reading order."""

    prompts: Sequence[Prompt]
    items: Sequence[int]

    @property
    def tokens(self) -> int:
        return sum(len(prompt.ids) for prompt in self.prompts)


@torch.no_grad()
def wake(encoder: Encoder) -> None:
    """Fresh adapters change nothing; give them something to say, so that a mistake in them would show."""
    torch.manual_seed(1)
    for name, weight in encoder.named_parameters():
        if "lora_B" in name:
            weight.normal_(std=0.02)
