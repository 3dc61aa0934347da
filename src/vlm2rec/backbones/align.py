"""Teach a projector to name items from their pictures, and measure on left-out items whether it learnt to see.

A LLaVA-style model put together from parts has eyes and a language model that never met. Here everything but the
projector stays frozen; the model reads a picture's tokens and a short cue and is trained to say the item's title.
Memorised titles cost nothing on the items trained on, so the figures that count are those of items left out, with
their own pictures and, as a control, with each other's: the difference is what the picture itself tells.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText

from vlm2rec.backbones.load import Backbone, load_backbone
from vlm2rec.backbones.pretrained import load_pretrained
from vlm2rec.backbones.vision import VisionTower, Visual
from vlm2rec.config import BackboneConfig, TrainingConfig
from vlm2rec.damage import damage
from vlm2rec.data.dataset import Catalogue
from vlm2rec.errors import InputError
from vlm2rec.runs import read_json, replacing, replacing_folder, write_json
from vlm2rec.training.loop import fit

RESULT = "align.json"
CUE = "\nTitle:"
_MAX_TITLE_TOKENS = 32
_ROWS = 32  # pictures or prompts at once where no gradient is kept
_FEWEST = 4  # titles: two to train on, two to trade pictures
_IGNORED = -100


class NamedCatalogue(Catalogue, Protocol):
    """A catalogue whose items have ids and whose content has a hash; a `Dataset` is one."""

    @property
    def item_ids(self) -> Sequence[str]:
        """One id an item."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of the content."""
        ...


@dataclass(frozen=True)
class Pictured:
    """The items to learn from and to test on, and what the tower sees of each.

    `trained` and `held_out` are rows of `features` (n, tokens, C), `titles` and `ids`.
    """

    ids: list[str]

    titles: list[list[int]]
    features: Tensor
    trained: np.ndarray
    held_out: np.ndarray
    a_picture: np.ndarray


class Namer:
    """A model that says a title after a picture; only its projector is trained."""

    def __init__(self, full: Any, backbone: Backbone, a_picture: np.ndarray) -> None:
        assert backbone.vision is not None
        self.projector: nn.Module = full.base_model.multi_modal_projector
        self._model = full.base_model
        self._vision = backbone.vision
        tokens = len(self._vision([a_picture])[0].tokens)
        self._head = full.get_output_embeddings()
        before, _ = backbone.wrapper(chat=False)
        self._prompt = [*before, *backbone.picture_tokens(tokens), *backbone.tokens(CUE)]

    def losses(self, titles: Sequence[Sequence[int]], features: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over each title's tokens, in nats, and the number of them: `(b,)`, `(b,)`.

        Args:
            titles: token ids, one list a row.
            features: the tower's output for each row's picture, `(b, tokens, C)`.
        """
        start, longest = len(self._prompt), max(map(len, titles))
        ids = torch.zeros(len(titles), start + longest, dtype=torch.long)
        labels = torch.full_like(ids, _IGNORED)
        for row, title in enumerate(titles):
            ids[row, : start + len(title)] = torch.tensor([*self._prompt, *title])
            labels[row, start - 1 : start - 1 + len(title)] = torch.tensor(title)  # a state predicts the next token
        device = self._model.device
        ids, labels = ids.to(device), labels.to(device)
        pictures = self._vision.inputs([Visual(tokens) for tokens in self.projector(features.to(device))])
        states = self._model(input_ids=ids, use_cache=False, **pictures).last_hidden_state
        wanted = labels != _IGNORED  # padding sits on the right, where a causal model never looks back from
        each = functional.cross_entropy(self._head(states[wanted]).float(), labels[wanted], reduction="none")
        sums = torch.zeros(len(titles), device=device).index_add(0, wanted.nonzero()[:, 0], each)
        return sums, wanted.sum(1)


def align(
    checkpoint: Path | str,
    dataset: NamedCatalogue,
    out: Path | str,
    *,
    steps: int = 400,
    batch_size: int = 16,
    lr: float = 1e-3,
    holdout: float = 0.1,
    leave_out: Iterable[str] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Train the projector of `checkpoint` on a catalogue; write the whole checkpoint with it to `out`.

    Killed and called again, it continues; finished and called again, it does nothing. `out` may be `checkpoint`.

    Args:
        checkpoint: folder of a LLaVA-style model (one with a `multi_modal_projector`).
        dataset: items with titles and pictures; those lacking either are passed over.
        out: folder to write; `align.json` in it holds the figures.
        steps: optimizer steps.
        batch_size: items a step.
        lr: peak learning rate of AdamW, with warm-up and linear decay.
        holdout: share of the items, by title, kept away from training to measure on.
        leave_out: ids of items to keep away besides, such as those of a later test.
        seed: of the choice of items and of the batches.

    Returns:
        What `align.json` says: counts, the ids held out, and cross-entropies in nats a title token.

    Raises:
        InputError: no such checkpoint, no projector in it, too few items, or `out` holds something else.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    left_out = sorted(set(leave_out))
    request = {
        "steps": steps, "batch_size": batch_size, "lr": lr, "holdout": holdout, "seed": seed, "cue": CUE,
        "leave_out": hashlib.sha256("\n".join(left_out).encode()).hexdigest(),
        "data": dataset.fingerprint, "checkpoint": _digest(checkpoint),
    }  # fmt: skip
    work = out.parent / f".{out.name}.aligning"
    finished = _finished(checkpoint, out, request)
    if finished is not None:
        shutil.rmtree(work, ignore_errors=True)
        return finished
    rows = _usable(dataset, set(left_out))
    full, backbone = _load(checkpoint)
    if not (work / "request.json").exists() or read_json(work / "request.json", "alignment") != request:
        shutil.rmtree(work, ignore_errors=True)
        write_json(work / "request.json", request)
    data = _look(backbone, full, dataset, rows, holdout, seed, work / "features.safetensors")
    namer = Namer(full, backbone, data.a_picture)
    before = _kept(work / "before.json", lambda: evaluate(namer, data, seed))

    def step(k: int, backward: Callable[[Tensor], None]) -> Mapping[str, float]:
        rows = batch(data.trained, batch_size, seed, k)
        sums, counts = namer.losses([data.titles[i] for i in rows], data.features[rows])
        loss = sums.sum() / counts.sum()
        backward(loss)
        return {"loss": float(loss.detach()), "samples": float(len(rows))}

    settings = TrainingConfig(epochs=1, batch_size=batch_size, lr=lr)
    state = fit(
        namer.projector, step, steps_per_epoch=steps, settings=settings, seed=seed, folder=work, title="aligning"
    )
    result = {
        "schema": 1,
        "request": request,
        "items": {"trained": len(data.trained), "held_out": len(data.held_out), "left_out": len(left_out)},
        "cross_entropy": {"before": before, "after": evaluate(namer, data, seed)},
        "seconds_per_step": state.seconds / max(1, steps),
        "held_out": [data.ids[i] for i in data.held_out],
    }
    _write(full, checkpoint, out, work, result)
    shutil.rmtree(work)
    return result


@torch.no_grad()
def evaluate(namer: Namer, data: Pictured, seed: int) -> dict[str, float]:
    """Cross-entropy of the held-out titles, with their own picture and with another held-out item's.

    Returns:
        `real`, `shuffled`: nats a token; `gain`, `gain_se`: mean over items of (shuffled - real) nats a token and
        its standard error; `share_better`: share of items whose own picture makes the title likelier.
    """
    order = np.random.default_rng([seed, 1]).permutation(data.held_out)
    real, counts = _all_losses(namer, data, order, order)
    shuffled, _ = _all_losses(namer, data, order, np.roll(order, 1))  # nobody keeps their own
    gain = (shuffled - real) / counts
    return {
        "real": float(real.sum() / counts.sum()),
        "shuffled": float(shuffled.sum() / counts.sum()),
        "gain": float(gain.mean()),
        "gain_se": float(gain.std(ddof=1) / np.sqrt(len(gain))),
        "share_better": float((gain > 0).mean()),
    }


def batch(rows: np.ndarray, size: int, seed: int, step: int) -> np.ndarray:
    """The rows of a step: every epoch is a new order, cut into full batches. A function of (seed, step) alone."""
    a_pass = max(1, len(rows) // size)
    epoch, place = divmod(step, a_pass)
    order = np.random.default_rng([seed, 2, epoch]).permutation(rows)
    return np.asarray(order[place * size : (place + 1) * size])


def split_by_title(titles: Sequence[str], holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers to train on and to hold out; equal titles stay on one side, or the answer would leak."""
    distinct = sorted(set(titles))
    count = min(max(2, round(holdout * len(distinct))), len(distinct) - 2)
    hidden = {distinct[i] for i in np.random.default_rng([seed, 0]).permutation(len(distinct))[:count]}
    held = np.array([title in hidden for title in titles], dtype=bool)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _all_losses(namer: Namer, data: Pictured, items: np.ndarray, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for start in range(0, len(items), _ROWS):
        rows = slice(start, start + _ROWS)
        parts.append(namer.losses([data.titles[i] for i in items[rows]], data.features[pictures[rows]]))
    sums, counts = (torch.cat(values).double().cpu().numpy() for values in zip(*parts, strict=True))
    return sums, counts


def _load(checkpoint: Path) -> tuple[Any, Backbone]:
    """The model with its language head, and the same model as a `Backbone`; frozen but for the projector."""
    backbone = load_backbone(BackboneConfig(path=str(checkpoint), dtype="float32"))
    if backbone.vision is None or not hasattr(backbone.model, "multi_modal_projector"):
        raise InputError(f"{checkpoint}: has no multi_modal_projector to train; give a LLaVA-style checkpoint")
    advice = "take another copy of the checkpoint"
    full: Any = load_pretrained(AutoModelForImageTextToText, checkpoint, str(checkpoint), advice, dtype=torch.float32)
    full.requires_grad_(False).eval().to(backbone.model.device)
    full.base_model.multi_modal_projector.requires_grad_(True)
    tower = VisionTower(full.base_model, backbone.vision.processor, backbone.vision.image_size)
    return full, replace(backbone, model=full.base_model, vision=tower)


def _look(
    backbone: Backbone, full: Any, dataset: NamedCatalogue, rows: np.ndarray, holdout: float, seed: int, path: Path
) -> Pictured:
    """Run the frozen tower once over the items' pictures (kept in `path`), and part the items by title."""
    if damage(path):  # not there, or cut short
        features = _features(backbone, full, dataset, rows)
        with replacing(path) as temporary:
            save_file({"features": features}, temporary)
    trained, held_out = split_by_title([dataset.titles[i] for i in rows], holdout, seed)
    a_picture = dataset.pictures[int(rows[0])]
    assert a_picture is not None
    return Pictured(
        ids=[dataset.item_ids[i] for i in rows],
        titles=[backbone.title_tokens(" " + dataset.titles[i])[:_MAX_TITLE_TOKENS] for i in rows],
        features=load_file(path)["features"],
        trained=trained,
        held_out=held_out,
        a_picture=a_picture,
    )


@torch.no_grad()
def _features(backbone: Backbone, full: Any, dataset: NamedCatalogue, rows: np.ndarray) -> Tensor:
    """What the projector is given for each picture: `(n, tokens, C)` float32."""
    assert backbone.vision is not None
    seen: list[Tensor] = []
    projector = full.base_model.multi_modal_projector
    hook = projector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float().cpu()))
    try:
        for start in track(range(0, len(rows), _ROWS), description="looking at pictures", transient=True):
            pictures = (dataset.pictures[int(i)] for i in rows[start : start + _ROWS])
            backbone.vision([picture for picture in pictures if picture is not None])
    finally:
        hook.remove()
    return torch.cat(seen)


def _usable(dataset: NamedCatalogue, left_out: set[str]) -> np.ndarray:
    """Indices of the items that have a title and a picture and are not to be left out."""
    named = [i for i, title in enumerate(dataset.titles) if title.strip() and dataset.item_ids[i] not in left_out]
    usable = [i for i in named if dataset.pictures[i] is not None]
    titles = {dataset.titles[i] for i in usable}
    if len(titles) < _FEWEST:
        raise InputError(
            f"only {len(titles)} different titles with a picture are left to align on; at least {_FEWEST} are needed"
        )
    return np.array(usable, dtype=np.int64)


def _finished(checkpoint: Path, out: Path, request: dict[str, Any]) -> dict[str, Any] | None:
    """The figures of an `out` that already is what is asked for. Raises InputError if it is something else."""
    if (out / RESULT).exists():
        result = read_json(out / RESULT, "aligned checkpoint")
        # Where the alignment replaced its own checkpoint, the weights found are the aligned ones.
        if {**result["request"], "checkpoint": request["checkpoint"]} == request and request["checkpoint"] in (
            result["request"]["checkpoint"],
            result["weights"],
        ):
            if out.resolve() != checkpoint.resolve() and _digest(out) != result["weights"]:
                raise InputError(f"{out}: its weights are not those that the alignment wrote; remove it to align anew")
            return result
    if out.resolve() != checkpoint.resolve() and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not this alignment; give another --out, or remove it")
    return None


def _write(full: Any, checkpoint: Path, out: Path, work: Path, result: dict[str, Any]) -> None:
    full.to(AutoConfig.from_pretrained(checkpoint).dtype or torch.float32)
    with replacing_folder(out) as temporary:
        full.save_pretrained(temporary)
        for file in checkpoint.iterdir():  # tokenizer, image processor, chat template
            weights = ".safetensors" in file.name or file.name == RESULT
            if file.is_file() and not weights and not (temporary / file.name).exists():
                shutil.copy(file, temporary)
        shutil.copy(work / "metrics.jsonl", temporary / "align.jsonl")
        result["weights"] = _digest(temporary)
        write_json(temporary / RESULT, result)


def _digest(checkpoint: Path) -> str:
    """Hash of a checkpoint's weights."""
    files = sorted(checkpoint.glob("*.safetensors"))
    if not files:
        raise InputError(f"{checkpoint}: no checkpoint (no *.safetensors in it); make one with `vlm2rec backbone`")
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _kept(path: Path, make: Callable[[], dict[str, float]]) -> dict[str, float]:
    """A small result that is made once and read from then on."""
    if not path.exists():
        write_json(path, make())
    return read_json(path, "alignment")
