"""Training and encoding as fast as they go here, beside the usual loop and sentence-transformers: ratios of one run.

    python benchmarks/throughput                                              nano, on any machine
    python benchmarks/throughput --backbone qwen2.5-vl-3b --batch 8 16 32     random weights at true size: needs a GPU
    python benchmarks/throughput --backbone FOLDER --data PREPARED            a checkpoint and data of one's own
    python benchmarks/throughput --backbone qwen2.5-vl-3b --count             no GPU: operations, memory, and the floor

All ways take the same batches with the same weights in one process, in turns. Before anything is timed they must give
the same loss, to 1e-4 in float32 without dropout, and the same gradients. A step is forward, loss and backward; the
optimizer, the same for all, is left out. Ours keeps visual tokens, which the tower makes once a picture before the
clock starts; the others run it at every step. Their ids and pixels wait for them, as data loaders would have it.

Columns: targets, which are samples; tokens of the prompts as they stand, and by how much what was read differs from
that (padding makes it more, a beginning that is read once less); operations done, recomputation too, and what share of
the rate of one large matrix product that is; how many times the targets a second of the row ours makes, one target a
sample and with all prefixes: the median over pairs of repeats, the least and the most.
"""

import argparse
import tempfile
import time
import warnings
from pathlib import Path

import counting
import encoding
import sentences
import steps
import torch
import transformers
from measure import ceiling, load
from presets import PRESETS
from shared import Asked, Bench
from transformers.utils.logging import disable_progress_bar
from ways import Ours, Way

from vlm2rec.data.dataset import Dataset
from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.errors import InputError

_PARTS = ("steps", "encoding", "vision")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="nano", help=f"nano, a folder, or one of {', '.join(PRESETS)}")
    parser.add_argument("--method", default="vlm2rec", choices=("sft", "vlm2rec"))
    parser.add_argument("--data", type=Path, help="a prepared data set; by default a shop is drawn")
    parser.add_argument("--folder", type=Path, help="keep what is drawn and written here, to start faster next time")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="samples a step")
    parser.add_argument("--targets", type=int, help="targets a step of all prefixes; default: four times the batch")
    parser.add_argument("--history", type=int, help="items of a history; default: 10, or what a preset's context holds")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: as torch has it")
    parser.add_argument("--seconds", type=float, default=120, help="of each batch size: two repeats at most after that")
    parser.add_argument("--parts", nargs="+", choices=_PARTS, default=list(_PARTS))
    parser.add_argument("--products", type=int, default=200, help="of the shop")
    parser.add_argument("--items", type=int, default=128, help="to encode")
    parser.add_argument("--users", type=int, default=32, help="to encode")
    parser.add_argument("--profile", type=Path, help="write the dearest operations of a step of each way to this file")
    parser.add_argument("--tiny", action="store_true", help="a preset's family, narrow: to try this script")
    parser.add_argument("--count", action="store_true", help="true size without a GPU: operations and memory")
    parser.add_argument("--mlp", action="store_true", help="ours computes feed-forward parts again: less memory")
    parser.add_argument("--compile", action="store_true", help="ours has its layers compiled")
    parser.add_argument("--tflops", type=float, default=800, help="with --count: of the machine to plan for")
    parser.add_argument("--bandwidth", type=float, default=3.35e12, help="with --count: its bytes a second")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    disable_progress_bar()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run(given, given.folder or Path(scratch))
        except InputError as error:
            raise SystemExit(str(error)) from None


def run(given: argparse.Namespace, folder: Path) -> None:
    began = time.monotonic()
    asked = ready(given, folder)
    if given.count:
        counting.report(asked, PRESETS[given.backbone], given.batch, given.targets, given.tflops, given.bandwidth)
        return
    library = sentences.find()
    if library is None:
        print("sentence-transformers is not installed: left out (pip install .[bench])")
    exact = Bench(asked, dtype="float32", dropout=0.0)
    print(f"{given.backbone}: losses in float32, without dropout")
    wrong = steps.check(exact, steps.Rivals(exact, library is not None), 2 * asked.history)
    if wrong is not None:
        raise SystemExit(f"not the same training step, so nothing is timed: {wrong}")
    del exact
    bench = Bench(asked)
    rivals = steps.Rivals(bench, library is not None)
    device, dtype = bench.encoder.device, bench.encoder.backbone.model.dtype
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    head = (
        f"{given.backbone} ({dtype}) on {card}, {torch.get_num_threads()} threads, load {load()}; {given.method};"
        f" torch {torch.__version__}, transformers {transformers.__version__}, sentence-transformers {library}"
    )
    print(f"{head}; ready after {time.monotonic() - began:.0f} s")
    if dtype != torch.float32:
        print(f"in {dtype}: {steps.coarse(bench, rivals)}")
    tables: list[str] = []
    known: dict[str, float] = {}
    for batch in given.batch if "steps" in given.parts else []:
        targets = given.targets or max(2 * asked.history, 4 * batch)
        own = Ours(bench, batch)
        ways: list[Way] = [own, Ours(bench, targets, branched=True), *rivals.ways(bench, own.samples)]
        before = ceiling(device, dtype)
        measured = steps.in_turns(bench, ways, given.repeats, given.seconds, known)
        top = max(before, ceiling(device, dtype))
        what = f"{describe(bench, own)}; a matrix product: {top / 1e12:.3f} TFLOP/s; load {load()}"
        tables.append(f"{what}\n{steps.table(measured, top)}")
        print(tables[-1])
        if given.profile:
            for way in ways[:3]:
                steps.profiled(way, 1, given.profile)
    at_once = 32 if device.type == "cuda" else 8
    if "encoding" in given.parts:
        tables.append(encoding.compare(bench, rivals, given.items, given.users, at_once, given.repeats, given.seconds))
        if rivals.library is not None and rivals.library.no_processor is not None:
            tables[-1] += f"\nsentence-transformers encodes no pictures here: {rivals.library.no_processor}"
    if "vision" in given.parts:
        tables.append(encoding.towers(bench, rivals, given.items, at_once, given.repeats))
    print("", head, *tables, f"load {load()}; {time.monotonic() - began:.0f} s in all", sep="\n")


def ready(given: argparse.Namespace, folder: Path) -> Asked:
    """Data and backbone on disk."""
    preset = PRESETS.get(given.backbone)
    if given.count and preset is None:
        raise InputError(f"--count plans for a published size: --backbone {', '.join(PRESETS)}")
    history = given.history or (preset.history if preset is not None else 10)
    world = ShopWorld(products=given.products, shoppers=300, shortest=history + 3, longest=history + 5)
    side = preset.side if preset is not None else 224
    data = given.data or prepare(world, folder / f"shop-{given.products}-{history}-{side}", picture_size=side).path
    backbone = given.backbone
    if preset is not None:
        tiny = given.tiny or given.count
        texts = Dataset.load(data).titles
        backbone = str(preset.write(folder / (given.backbone + "-tiny" * tiny), texts, tiny))
    return Asked(data, backbone, given.method, history, given.compile and not given.count, given.mlp)


def describe(bench: Bench, own: Ours) -> str:
    batch = own.samples.batch(0)
    groups = bench.groups(batch)
    names = [f"{of} {modality}" for of in ("history", "target") for modality in bench.encoder.passes]
    lengths = ", ".join(
        f"{name} {group.tokens / len(group.prompts):.0f}" for name, group in zip(names, groups, strict=True)
    )
    return f"batch {len(batch.histories)}: histories of {max(map(len, batch.histories))}; tokens a prompt: {lengths}"


if __name__ == "__main__":
    main()
