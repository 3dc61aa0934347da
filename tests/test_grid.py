from dataclasses import replace

import pytest

from vlm2rec.grid import Grid, Style, best_two

GRID = Grid(
    "A & B",
    ("method", "N@20"),
    (("first_one", ".1 ± .2"), ("other", ".3"), ("third", "–")),
    marks=((0, 2), (0, 1), (0, 0)),
    groups=(0, 0, 1),
)


def test_best_and_second_best_share_their_marks_on_ties() -> None:
    assert best_two([0.1, 0.3, None, 0.2]) == [0, 1, 0, 2]
    assert best_two([0.3, 0.3, 0.2, 0.2, 0.1]) == [1, 1, 2, 2, 0]
    assert best_two([0.3, 0.3]) == [1, 1]
    assert best_two([None, 0.3]) == [0, 0]  # best of one is no news
    assert best_two([]) == []


def test_what_rests_on_few_users_is_no_best() -> None:
    assert best_two([0.1, 0.9, 0.2, None], users=[30, 29, 400, 5]) == [2, 3, 1, 0]
    assert best_two([0.1, 0.9], users=[400, 3]) == [0, 3], "one is left, which is best of nothing"
    assert best_two([0.1, 0.9], users=[None, None]) == [2, 1], "not a figure of users"


def test_what_is_shown_as_nothing_is_no_best() -> None:
    assert best_two([0.0, 0.0004], 3) == [0, 0] and best_two([0.0, 0.0004], 4) == [0, 1]
    assert best_two([0.0006, 0.0004, 0.0], 3) == [1, 0, 0]
    assert best_two([-0.0, -0.3], 3) == [0, 2], "the best is nothing, and yet the other one is second"


@pytest.mark.parametrize(
    ("style", "cell"), [("text", "(.1 ± .2)"), ("markdown", "(.1 ± .2)"), ("latex", "(.1 $\\pm$ .2)")]
)
def test_few_users_stand_in_brackets_which_the_heading_explains(style: Style, cell: str) -> None:
    shown = replace(GRID, marks=((0, 3), (0, 1), (0, 0))).render(style)
    assert cell in shown and "in brackets: fewer than 30 users" in shown
    assert "in brackets" not in GRID.render(style)


def test_text() -> None:
    assert GRID.render("text").splitlines() == [
        "A & B (¹ best, ² second best)",
        "",
        "method         N@20",
        "-------------------",
        "first_one  .1 ± .2²",
        "other           .3¹",
        "-------------------",
        "third             –",
    ]


def test_markdown() -> None:
    assert GRID.render("markdown").splitlines()[2:] == [
        "| method    |           N@20 |",
        "| --- | ---: |",
        "| first_one | <u>.1 ± .2</u> |",
        "| other     |         **.3** |",
        "| third     |              – |",
    ]


def test_latex_escapes_and_rules() -> None:
    lines = [" ".join(line.split()) for line in GRID.render("latex").splitlines()]
    assert "\\caption{A \\& B}" in lines
    assert lines[2] == "\\begin{tabular}{lr}"
    assert "first\\_one & \\underline{.1 $\\pm$ .2} \\\\" in lines
    assert lines.index("\\bottomrule") - lines.index("\\toprule") == 7  # head, rule, 2 rows, rule, 1 row
    assert lines[-4:-2] == ["third & -- \\\\", "\\bottomrule"]
