"""How well items are found that training has seldom or never seen."""

from collections.abc import Sequence

from vlm2rec.comparison import SEQUENTIAL, Method, marks_of
from vlm2rec.grid import Grid
from vlm2rec.metrics import FEW
from vlm2rec.report.curves import COLOURS
from vlm2rec.report.figures import Bar, Group
from vlm2rec.report.parts import NONE, Panel, Sheet, cell, without_empty
from vlm2rec.report.plots import BarChart
from vlm2rec.report.words import display

BUCKETS = ("0", "1-5", "6-10", "11-20", "21+")
"""Events of the target in training, as `results.json` has them."""
TASKS = ("retrieval", *SEQUENTIAL)


def cold_charts(methods: Sequence[Method]) -> tuple[Panel, ...]:
    """A chart a task: N@20 on sampled candidates by how often training saw the item, a bar a method.

    Bars of few users are pale.
    """
    panels = []
    for task in TASKS:
        groups = [
            Group(f"{_bucket(bucket)} ({users} users)", bars)
            for bucket in BUCKETS
            if (bars := _bars(methods, f"cold.{task}.{bucket}.sampled"))
            and (users := _users(methods, f"cold.{task}.{bucket}.users"))
        ]
        title = f"{_task(task)}: N@20 on sampled candidates"
        panels.append(Panel(f"cold-{task}", BarChart(title, groups), f"{title}, by events of the item in training."))
    return without_empty(panels)


def cold_sheets(methods: Sequence[Method]) -> list[Sheet]:
    """A table a task: methods and candidate sets as rows, buckets as columns."""
    sheets = []
    for task in TASKS:
        rows, marks, groups = [], [], []
        for place, candidates in enumerate(("sampled", "full")):
            names = [f"cold.{task}.{bucket}.{candidates}" for bucket in BUCKETS]
            having = [method for method in methods if any(name in method.values for name in names)]
            rows += [(display(method.label), candidates, *(cell(method, name) for name in names)) for method in having]
            marks += [(0, 0, *marked) for marked in marks_of(having, names, 3)]
            groups += [place] * len(having)
        header = ("method", "candidates", *map(_bucket, BUCKETS))
        title = f"{_task(task)}: N@20 by events of the item in training"
        if rows:
            users = [_users(methods, f"cold.{task}.{bucket}.users") for bucket in BUCKETS]
            rows.insert(0, ("users", "", *users))
            marks.insert(0, (0,) * len(header))
            groups.insert(0, -1)
            sheets.append(Sheet(f"cold-{task}", Grid(title, header, tuple(rows), tuple(marks), tuple(groups))))
    return sheets


def _bars(methods: Sequence[Method], name: str) -> tuple[Bar, ...]:
    return tuple(
        Bar(f"m{place % COLOURS}", display(method.label), mean, method.sd(name), unsure=_unsure(method, name))
        for place, method in enumerate(methods)
        if (mean := method.mean(name)) is not None
    )


def _unsure(method: Method, name: str) -> bool:
    users = method.users_behind(name)
    return users is not None and users < FEW


def _users(methods: Sequence[Method], name: str) -> str:
    """How many users there are, the same for all methods."""
    return next((f"{mean:,.0f}" for method in methods if (mean := method.mean(name)) is not None), NONE)


def _bucket(bucket: str) -> str:
    return "never" if bucket == "0" else bucket


def _task(task: str) -> str:
    return "Retrieval" if task == "retrieval" else display(task)
