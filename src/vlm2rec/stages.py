"""The stages of a run, which stand on each other: what they leave, and which are done again where some of it is lost.

A stage is done if the manifest lists it and what it left is whole. Where a file is gone or cut short, its stage is done
again, and so are those that used what it makes. A new page costs nothing; a lost model is trained again, and its
vectors made anew, since the old ones do not belong to it.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlm2rec.damage import damage
from vlm2rec.progress import notice
from vlm2rec.runs import STAGES, Run, read_json

_STANDS_ON = {
    "encode": {"train"},
    "evaluate": {"reference", "train", "encode"},
    "seqrec": {"train", "encode", "evaluate"},
    "report": {"evaluate", "seqrec"},
}
_LEAVES = {"evaluate": ("users.parquet", "results.json"), "report": ("report.html",)}  # whatever the method
_SINCE_DIAGNOSES = ("reference.parquet", "modalities.parquet")  # which runs without a diagnosis never had

Names = Mapping[str, Sequence[str]]
"""Stage -> names of files and folders in the run directory."""


def listed(out: Path) -> set[str]:
    """The stages that the manifest of a run lists as done; none where there is no run yet."""
    return set(Run.open(out).manifest["done"]) if (out / "manifest.json").exists() else set()


def lost(out: Path, leaves: Names) -> dict[str, str]:
    """Stages that are listed but have lost what they left, and what is wrong; `leaves` is what the method's stages do.

    Of runs from before there were diagnoses, what these never had is not missed.
    """
    done = listed(out)
    old = "evaluate" in done and not damage(out / "results.json")
    old = old and "diagnosis" not in read_json(out / "results.json", "results")
    found = {}
    for stage in (stage for stage in STAGES if stage in done):
        names = [*_LEAVES.get(stage, ()), *leaves.get(stage, ())]
        reasons = {name: damage(out / name) for name in names if not (old and name in _SINCE_DIAGNOSES)}
        first = next((name for name, reason in reasons.items() if reason), None)
        if first is not None:
            found[stage] = str(Path(first).parent / reasons[first])
    return found


def with_later(stages: Iterable[str]) -> set[str]:
    """Stages, and those that stand on them."""
    found = set(stages)
    for stage in STAGES:
        if found & _STANDS_ON.get(stage, set()):
            found.add(stage)
    return found


def open_again(run: Run, reasons: Mapping[str, str], leaves: Names, kept: Names) -> None:
    """Take stages that have lost something, and those that stand on them, off the manifest's list, and say so.

    Before that, vectors that later stages left and what they have `kept` to go on from are removed: both stem from what
    will not be there any more. Figures and pages stay until new ones take their place.
    """
    if not reasons:
        return
    again, done = with_later(reasons), run.manifest["done"]
    for stage in (stage for stage in STAGES if _STANDS_ON.get(stage, set()) & again):
        tables = [name for name in leaves.get(stage, ()) if not Path(name).suffix]
        for pattern in (*tables, *kept.get(stage, ())):
            for folder in run.path.glob(pattern):
                shutil.rmtree(folder)
    run.record(done={stage: info for stage, info in done.items() if stage not in again})
    later = [stage for stage in STAGES if stage in done and stage in again and stage not in reasons]
    also = f", and with it what stands on it ({', '.join(later)})" if later else ""
    for stage, reason in reasons.items():
        notice(f"{run.path}: {reason}, so {stage} is done again{also}")
