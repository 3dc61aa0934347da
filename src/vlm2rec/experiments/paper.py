"""The paper's tables and figures as data. To add one: one more `Experiment`; a row is one more `Row` in `rows`."""

from vlm2rec.comparison import SETS
from vlm2rec.experiments import rows
from vlm2rec.experiments.charts import Bars, Curves, Sweep
from vlm2rec.experiments.spec import MAIN, Column, Experiment, Sheet
from vlm2rec.metrics import METRICS

_NAME = rows.VLM2REC.name

_TASK1 = Column("Task 1", f"retrieval.sampled.{MAIN}")
_TASK2 = Column("Task 2 (SASRec)", f"seqrec.sasrec.sampled.{MAIN}")
_VIEWS = tuple(Column(view, f"dropout.{view}") for view in ("f2f", "t2f", "v2f"))


def _ranked(tasks: dict[str, str]) -> tuple[tuple[Sheet, ...], tuple[Column, ...]]:
    """Sheets of a table of ranks, all metrics on the paper's candidates and N@20 on all; and all for the CSV."""

    def headed(*parts: str) -> str:
        return " ".join(part for part in parts if part)

    metrics = tuple(Column(headed(h, m), f"{at}.sampled.{m}") for h, at in tasks.items() for m in METRICS)
    sets = tuple(Column(headed(h, s), f"{at}.{s}.{MAIN}") for h, at in tasks.items() for s in SETS)
    listed = tuple(Column(h, f"{at}.{s}.{m}") for h, at in tasks.items() for s in SETS for m in METRICS)
    return (Sheet("uniform candidates", metrics), Sheet(f"{MAIN} by candidate set", sets)), listed


_DIRECT, _DIRECT_LISTED = _ranked({"": "retrieval"})
_STARTED, _STARTED_LISTED = _ranked({"GRU4Rec": "seqrec.gru4rec", "SASRec": "seqrec.sasrec"})

_BUCKETS = ("0", "1-5", "6-10", "11-20", "21+")


def _cold(task: str) -> tuple[Column, ...]:
    return tuple(Column(bucket, f"cold.{task}.{bucket}.sampled") for bucket in _BUCKETS)


_COLD_USERS = tuple(Column(bucket, f"cold.retrieval.{bucket}.users", 0, None) for bucket in _BUCKETS)
_PROBES = {"grad_cos_text": "text", "grad_cos_image": "image"}

_MISSING = {
    "item_text": "target: title alone",
    "item_image": "target: picture alone",
    "history_text": "history: titles alone",
    "history_image": "history: pictures alone",
    "mixed": "mixed catalogue",
}

TABLES = (
    Experiment(
        "table1",
        "Geometry of the embedding spaces",
        (rows.VANILLA, rows.SFT, rows.VLM2REC),
        tuple(
            Sheet(
                f"{view} vectors",
                (
                    Column("A_pos", f"geometry.{view}.A_pos", best="low"),
                    Column("A_neg", f"geometry.{view}.A_neg"),
                    Column("U", f"geometry.{view}.U", best="low"),
                    Column("S", f"geometry.{view}.S"),
                ),
            )
            for view in ("text", "image", "fused")
        ),
        notes=(
            "Squared distances of unit vectors: A_pos of a history to its target, A_neg to its 100 negatives; S = A_neg"
            " / A_pos, and 1 means that a space cannot tell them apart; U is lower where the space is used better.",
        ),
    ),
    Experiment(
        "table2",
        "Task 1, direct recommendation",
        (*rows.SANITY, *rows.IDS, *rows.SMALL, *rows.FOUNDATION, *rows.EMBEDDERS, rows.VLM2REC, rows.HYBRID),
        _DIRECT,
        reference=_NAME,
        listed=_DIRECT_LISTED,
    ),
    Experiment(
        "table3",
        "Data sets",
        (),
        (
            Sheet(
                "size",
                (
                    Column("users", "users", 0, None),
                    Column("items", "items", 0, None),
                    Column("interactions", "interactions", 0, None),
                    Column("density", "density", 5, None),
                    Column("events a user", "events_per_user.mean", 2, None),
                    Column("median", "events_per_user.50%", 1, None),
                ),
            ),
            Sheet(
                "what to look out for",
                (
                    Column("without title", "titles.missing", 0, None),
                    Column("without picture", "pictures.missing", 0, None),
                    Column("picture of another", "pictures.duplicate", 0, None),
                    Column("dropped, no picture", "pictures.items_dropped_missing", 0, None),
                    Column("tied in time", "ties.share_of_interactions", 3, None),
                    Column("last event tied", "ties.share_of_users_whose_last_is_tied", 3, None),
                    Column("target bought before", "repeats.share_of_test_targets", 3, None),
                    Column("Gini of popularity", "popularity.gini", 3, None),
                ),
            ),
        ),
    ),
    Experiment(
        "table4",
        "Task 2, sequential models started from item vectors",
        (*rows.SANITY, *rows.IDS, *rows.SMALL, *rows.FOUNDATION, *rows.EMBEDDERS, rows.VLM2REC),
        _STARTED,
        reference=_NAME,
        task2=True,
        direct=tuple(row.name for row in rows.SANITY),
        listed=_STARTED_LISTED,
    ),
    Experiment(
        "table5",
        "Ablation and fusion",
        (*rows.ABLATION, *rows.CONTROLS, *rows.FUSION),
        (Sheet(f"{MAIN}, uniform candidates", (_TASK1, _TASK2, *_VIEWS[1:])),),
        reference=_NAME,
        task2=True,
        order=((_NAME,), ("no_crtr", "no_stop_gradient", "no_penalty"), ("no_wpcl",)),
        notes=(
            "Task 1 is f2f, histories of both modalities; t2f and v2f keep one. Internal fusion has no such views.",
        ),
    ),
    Experiment(
        "table6",
        "Trained on another data set, used on this one as it is",
        (rows.LLM_VANILLA, rows.VANILLA, *(transfer for _, transfer in rows.TRANSFERRED)),
        (Sheet(f"{MAIN}, uniform candidates", (_TASK1, _TASK2)),),
        support=tuple(source for source, _ in rows.TRANSFERRED),
        reference=f"{_NAME}_transfer",
        task2=True,
        notes=("Vanilla rows are the backbone as it comes, which has seen neither data set.",),
    ),
    Experiment(
        "table7",
        "Few users, and what it all costs",
        (rows.LLMEMB, rows.LLM2REC, rows.LLM_SFT, rows.NOTELLM2, rows.SFT, *rows.FEW_SHOT, rows.VLM2REC),
        (
            Sheet(
                "N@20, and time",
                (
                    _TASK1,
                    _TASK2,
                    Column("users", "derived.users", 0, None),
                    Column("training, min", "derived.minutes", 2, None),
                    Column("min an epoch", "derived.epoch_minutes", 2, None),
                    Column("items, s", "derived.item_seconds", 1, None),
                ),
            ),
        ),
        reference=_NAME,
        task2=True,
        notes=(
            "Times are those of the machine that the runs were made on; visual tokens are computed once and kept, so"
            " later passes do not pay for them. An epoch is that of the row's own training; LLM2Rec has none.",
        ),
    ),
)

FIGURES = (
    Experiment(
        "figure1a",
        "What histories of one modality can find",
        (rows.VANILLA, rows.SFT, rows.VLM2REC),
        (
            Sheet(
                f"{MAIN}, uniform candidates",
                (
                    *_VIEWS,
                    *(Column(f"{c.heading}, step 0", f"reference.{c.figure}", best=None) for c in _VIEWS),
                ),
            ),
        ),
        charts=(Bars("Input modality dropout", _VIEWS, start=True, chance=True),),
        reference=_NAME,
        notes=("f2f: histories of both modalities; t2f: of titles alone; v2f: of pictures alone. Targets are fused.",),
    ),
    Experiment(
        "figure1b",
        "Whose gradient training follows",
        (rows.SFT, rows.VLM2REC),
        (
            Sheet(
                "cosine of the update's gradient with that of one modality",
                tuple(
                    Column(f"{name}, {when}", f"probes.{when}.{probe}", 3, None)
                    for probe, name in _PROBES.items()
                    for when in ("start", "1%", "10%", "end")
                ),
            ),
        ),
        charts=tuple(Curves(f"{name} gradient", probe, "cosine with the update") for probe, name in _PROBES.items()),
        listed=tuple(Column(probe, f"probe.*.{probe}") for probe in _PROBES),
        notes=("start: before the first step; 1 %, 10 %: the probe nearest to that share of the steps.",),
    ),
    Experiment(
        "figure3",
        "Targets by how often training had them",
        (rows.SASREC, rows.BERT, rows.PAIR, rows.LLM_SFT, rows.SFT, rows.VLM2REC),
        (
            Sheet(f"Task 2 (SASRec): {MAIN}, uniform candidates", _cold("sasrec")),
            Sheet(f"Task 1: {MAIN}, uniform candidates", _cold("retrieval")),
            Sheet("users whose target it is", _COLD_USERS, alike=True),
        ),
        charts=(
            Bars(
                "Task 2 (SASRec), by training events of the target",
                _cold("sasrec"),
                groups="columns",
                counts=_COLD_USERS,
            ),
            Bars("Task 1 by training events", _cold("retrieval"), groups="columns", counts=_COLD_USERS),
        ),
        task2=True,
    ),
    Experiment(
        "figure4",
        "Families and sizes of backbones",
        rows.FAMILY,
        (
            Sheet(
                f"{MAIN}, uniform candidates",
                (Column("parameters", "derived.parameters", 0, None), _TASK1, _TASK2, *_VIEWS[1:]),
            ),
        ),
        charts=(Bars("Backbones by size", (_TASK1, _TASK2), by_size=True),),
        task2=True,
        each="families",
    ),
    Experiment(
        "figure5",
        "Sensitivity to temperatures and weight",
        (rows.VLM2REC, rows.SFT, *(row for grid in rows.SWEEPS.values() for row in grid)),
        (Sheet(f"{MAIN}, uniform candidates", (_TASK1, *_VIEWS[1:])),),
        charts=tuple(
            Sweep(grid[0].group, f"objective.{key}", tuple(row.name for row in grid), _NAME, (rows.SFT.name,), _TASK1)
            for key, grid in rows.SWEEPS.items()
        ),
        notes=("One value is changed at a time; the others are those of the row VLM2Rec.",),
    ),
)

EXTRA = (
    Experiment(
        "missing",
        "When pictures or titles are missing",
        rows.MISSING,
        tuple(
            Sheet(
                f"{MAIN}, {name} candidates",
                (
                    Column("nothing missing", f"retrieval.{kind}.{MAIN}"),
                    *(Column(heading, f"missing.{case}.{kind}.{MAIN}") for case, heading in _MISSING.items()),
                ),
            )
            for kind, name in (("sampled", "uniform"), ("matched", "popularity-matched"))
        ),
        support=(rows.SFT, rows.VLM2REC),
        notes=(
            "The target, or the whole history, has one modality alone, and all else is whole; in the mixed catalogue a"
            " third of all items has titles alone, and a third pictures alone. The encoders are the trained ones of the"
            " other tables: nothing was trained on incomplete items.",
        ),
    ),
)

EXPERIMENTS = {experiment.name: experiment for experiment in (*FIGURES, *TABLES, *EXTRA)}

ALL = ("figure1a", "figure1b", "table1", "table3", "table5", "table7", "figure3", "figure5")
"""What `all` stands for: everything but what needs further data, backbones or much time."""
