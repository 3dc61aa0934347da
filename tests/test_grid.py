from vlm2rec.grid import Grid, best_two

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
