"""From pictures and titles on disk to fused vectors, and the vision tower alone, by all ways in turns.

Items start cold: each repeat reads and looks at every picture. Users come after items, as they do in the project, where
visual tokens are kept by then; the others run the tower again for every history, which is what they do.
"""

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import sentences
import torch
from measure import seconds, spread
from shared import Bench, Group
from steps import Rivals
from ways import last_states, padded, pixels_of

from vlm2rec.backbones.packing import Prompt
from vlm2rec.encode import encode
from vlm2rec.encoder import Encoder

_SAME, _COARSE = 1e-3, 5e-2  # of a vector's length, in float32 and in anything narrower
_READERS = 4  # threads that make the usual loop's batches on a GPU's host; one beside a CPU's work

Encoding = Callable[[], np.ndarray]


def compare(bench: Bench, rivals: Rivals, items: int, users: int, at_once: int, repeats: int, limit: float) -> str:
    """Encode some items, then some users' test histories; the rate of each way and our ratio to it, as a table."""
    split = bench.split
    rows = {
        "items": [[item] for item in range(min(items, split.n_items))],
        "users": [split.history(user, "test").tolist() for user in range(min(users, split.n_users))],
    }
    bench.encoder.eval()
    rivals.stock.model.eval()
    lines = [f"{'':38}{'a second':>10}{'min-max':>14}{'ours is faster':>15}{'min-max':>14}"]
    for kind, some in rows.items():
        prompts = bench.encoder.prompts(split.dataset, some)  # the others' words, made before the clock starts
        ways: dict[str, Encoding] = {
            "vlm2rec": partial(ours, bench, some, cold=kind == "items"),
            "usual loop": partial(plain, bench, rivals, some, prompts, at_once),
        }
        if rivals.library is not None and rivals.library.no_processor is None:
            ways["sentence-transformers"] = partial(sentences.encode, rivals.library, bench, some, prompts, at_once)
        lines += _in_turns(kind, ways, len(some), bench, repeats, limit)
    bench.encoder.train()
    return "\n".join(lines)


def _in_turns(kind: str, ways: dict[str, Encoding], count: int, bench: Bench, repeats: int, limit: float) -> list[str]:
    device, began = bench.encoder.device, time.monotonic()
    vectors = {name: way() for name, way in ways.items()}  # warms up
    for name, found in vectors.items():
        error = float(np.max(np.linalg.norm(found - vectors["vlm2rec"], axis=1) / np.linalg.norm(found, axis=1)))
        print(f"  {kind}, {name}: vectors off by {error:.1e} at most")
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        if repeat and time.monotonic() - began > limit:
            break
        for name in ways if repeat % 2 else reversed(ways):
            taken[name].append(seconds(ways[name], device))
    lines = []
    for name, times in taken.items():
        line = f"{f'{kind}, {name}':38}{spread([count / one for one in times], 1)}"
        if name != "vlm2rec":
            line += " " * 5 + spread([slow / fast for slow, fast in zip(times, taken["vlm2rec"], strict=True)], 2)
        lines.append(line)
    return lines


def ours(bench: Bench, rows: list[list[int]], cold: bool) -> np.ndarray:
    """`encode`, as a run does it, its table on disk included; `cold`: of a catalogue that was never looked at."""
    dataset = bench.split.dataset
    with tempfile.TemporaryDirectory() as scratch:
        ids = [str(number) for number in range(len(rows))]
        out = Path(scratch) / "table"
        table = encode(bench.encoder, copy.copy(dataset) if cold else dataset, rows, ids, out, items=cold)
        return np.array(table.views["fused"])


@torch.no_grad()
def plain(bench: Bench, rivals: Rivals, rows: list[list[int]], prompts: list[Prompt], at_once: int) -> np.ndarray:
    """The usual loop: batches of like length, read ahead by threads; titles, then pixels, through the stock model."""
    model, encoder = rivals.stock.model, bench.encoder
    order = np.argsort([-len(row) for row in rows], kind="stable")
    parts = [order[start : start + at_once] for start in range(0, len(rows), at_once)]

    def read(part: np.ndarray) -> list[tuple[Group, torch.Tensor, object]]:
        made = []
        for number, modality in enumerate(encoder.passes):
            shown = [item for i in part for item in rows[i]] if modality != "text" else []
            group = Group([prompts[number * len(rows) + i] for i in part], shown)
            made.append((group, padded(group), pixels_of(bench, shown)))
        return made

    found = np.empty((len(rows), encoder.backbone.dim), np.float32)
    with ThreadPoolExecutor(_READERS if model.device.type == "cuda" else 1) as pool:
        for part, made in zip(parts, pool.map(read, parts), strict=True):
            vectors = [
                last_states(
                    model, ids.to(model.device), torch.tensor([len(p.ids) for p in group.prompts]).to(model.device),
                    bench, pixels,
                )
                for group, ids, pixels in made
            ]  # fmt: skip
            found[part] = sum(vectors[1:], vectors[0]).float().cpu().numpy()
    return found


def towers(bench: Bench, rivals: Rivals, pictures: int, at_once: int, repeats: int) -> str:
    """Pictures a second of our tower and of the stock one, on the same pixels; they must give the same tokens."""
    encoder: Encoder = bench.encoder
    vision, stock, device = encoder.backbone.vision, rivals.stock.model, encoder.device
    assert vision is not None
    found = [picture for picture in bench.split.dataset.pictures if picture is not None][:pictures]
    parts = [vision.prepare(found[start : start + at_once]) for start in range(0, len(found), at_once)]

    def run_ours() -> list[torch.Tensor]:
        return [visual.tokens for part in parts for visual in vision.look(part)]

    @torch.no_grad()
    def run_stock() -> list[torch.Tensor]:
        outputs = [
            stock.get_image_features(**{name: value.to(device) for name, value in part.inputs.items()}).pooler_output
            for part in parts
        ]
        return [tokens for output in outputs for tokens in output]

    ways: dict[str, Callable[[], Sequence[torch.Tensor]]] = {"vlm2rec": run_ours, "stock": run_stock}
    stock.eval()
    one, other = (torch.cat([tokens.reshape(-1, tokens.shape[-1]) for tokens in run()]) for run in ways.values())
    error = float((one.float() - other.float()).norm() / other.float().norm())
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for repeat in range(repeats):
        for name in ways if repeat % 2 else reversed(ways):
            taken[name].append(seconds(ways[name], device))
    ratios = [slow / fast for slow, fast in zip(taken["stock"], taken["vlm2rec"], strict=True)]
    lines = [f"{f'pictures, {name}':38}{spread([len(found) / t for t in times], 1)}" for name, times in taken.items()]
    lines[-1] += " " * 5 + spread(ratios, 2) + f"   tokens off by {error:.1e}"
    return "\n".join(lines)
