"""What is concluded from known figures, and in which words."""

import re
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm2rec.diagnostics.describe import STATUS, describe
from vlm2rec.diagnostics.measure import Measured
from vlm2rec.diagnostics.sentences import number
from vlm2rec.diagnostics.status import at_chance, below_chance, fell, unclear
from vlm2rec.diagnostics.status import status as status_of
from vlm2rec.diagnostics.verdict import ERROR, conclude, falls

CHANCE = 0.07
SHAPE = {"A_pos": 1.0, "A_neg": 1.8, "U": -2.0, "S": 1.8}


def about(mean: float, users: int, seed: int, sd: float = 0.1) -> np.ndarray:
    """Figures of exactly this mean and standard deviation."""
    values = np.random.default_rng(seed).standard_normal(users)
    return mean + sd * (values - values.mean()) / values.std(ddof=1)


def made(users: int = 400, seed: int = 0, **means: Any) -> Measured:
    """Measurements by their means (f2f, t2f, v2f, t2t, v2v) or their values; the rest as it comes, or as given."""
    names = [name for name in ("f2f", "t2f", "v2f", "t2t", "v2v") if name in means]
    columns = {
        name: about(means[name], users, seed + place) if isinstance(means[name], float) else np.asarray(means[name])
        for place, name in enumerate(names)
    }
    count = len(next(iter(columns.values())))
    margins = {name: means[name] for name in ("margin_text", "margin_image") if name in means}
    given = {name: value for name, value in means.items() if name not in (*names, *margins)}
    return Measured(
        **{
            "users": pl.DataFrame({"user_id": [f"u{row}" for row in range(count)], **columns, **margins}),
            "counts": {name: (np.zeros(count, int), np.zeros(count, int)) for name in names},
            "chance": CHANCE,
            "geometry": {"fused": SHAPE, "text": {**SHAPE, "S": 1.91}, "image": {**SHAPE, "S": 1.04}},
            "norms": {},
            "effective_rank": {},
            "isotropy": {},
            "neighbour_overlap": {},
            "silent": {},
            **given,
        }
    )


def said(found: dict[str, Any], start: str) -> str:
    """The one sentence that starts like this."""
    (line,) = [line for line in found["verdict"] if line.startswith(start)]
    return str(line)


GOOD = {"f2f": 0.4, "t2f": 0.3, "v2f": 0.25}


@pytest.mark.parametrize(
    ("now", "start", "status"),
    [
        (GOOD, None, "balanced"),
        (GOOD, {"f2f": 0.2, "t2f": 0.2, "v2f": 0.2}, "balanced"),
        (GOOD, {"f2f": 0.2, "t2f": 0.2, "v2f": 0.3}, "collapsed"),  # pictures fell, and still find something
        (GOOD, {"f2f": 0.2, "t2f": 0.4, "v2f": 0.2}, "collapsed"),  # texts did
        ({**GOOD, "v2f": 0.07}, {"f2f": 0.2, "t2f": 0.2, "v2f": 0.2}, "collapsed"),  # fell, to chance
        ({**GOOD, "v2f": 0.03}, {"f2f": 0.2, "t2f": 0.2, "v2f": 0.2}, "collapsed"),  # fell, below chance
        ({**GOOD, "v2f": 0.07}, None, "at chance"),
        ({**GOOD, "t2f": 0.07}, None, "at chance"),
        ({"f2f": 0.07, "t2f": 0.07, "v2f": 0.07}, None, "at chance"),
        ({**GOOD, "v2f": 0.07}, {"f2f": 0.1, "t2f": 0.1, "v2f": 0.07}, "at chance"),  # never anything else
        (
            {**GOOD, "v2f": 0.07},
            {"f2f": 0.1, "t2f": 0.1, "v2f": 0.02},
            "at chance",
        ),  # gained, and yet no more than that
        ({**GOOD, "v2f": 0.03}, None, "below chance"),
        ({**GOOD, "v2f": 0.03}, {"f2f": 0.1, "t2f": 0.1, "v2f": 0.03}, "below chance"),
        ({"f2f": 0.2, "t2f": 0.07, "v2f": 0.03}, None, "below chance"),
        ({"f2f": 0.2, "t2f": 0.3, "v2f": 0.07}, None, "at chance"),  # and harmful besides
        ({"f2f": 0.25, "t2f": 0.3, "v2f": 0.2}, None, "harmful"),
        ({"f2f": 0.25, "t2f": 0.2, "v2f": 0.3}, None, "harmful"),  # better than one half, not than the other
        ({"f2f": 0.4, "t2f": 0.4, "v2f": 0.15}, None, "unbalanced"),
        ({"f2f": 0.4, "t2f": 0.15, "v2f": 0.4}, None, "unbalanced"),
        ({"f2f": 0.3, "t2f": 0.3, "v2f": 0.3}, None, "balanced"),
        ({"f2f": 0.4, "t2f": 0.4}, None, "unknown"),  # one modality
        ({"f2f": 0.4}, None, "unknown"),
        ({"t2t": 0.4, "v2v": 0.4}, None, "unknown"),  # no fusion
    ],
)
def test_each_status_in_turn(now: dict[str, float], start: dict[str, float] | None, status: str) -> None:
    found = conclude(made(**now), None if start is None else made(seed=5, **start).users)
    assert found["status"] == status and status in STATUS
    assert "verdict" in found and all(line.endswith(".") and "\n" not in line for line in found["verdict"])
    if status != "unknown":
        assert ("There is no step 0" in " ".join(found["verdict"])) == (start is None)


@pytest.mark.parametrize(("users", "status"), [(1, "unknown"), (2, "unknown"), (5, "unknown"), (1000, "at chance")])
def test_few_users_are_no_evidence_of_a_collapse(users: int, status: str) -> None:
    """N@20 of one user is mostly 0 or far above chance: five who find little say nothing."""
    values = about(0.09, users, 0, sd=0.2) if users > 1 else np.array([0.09])
    found = conclude(made(f2f=np.full(users, 0.4), t2f=about(0.4, users, 1, 0.01) if users > 1 else [0.4], v2f=values))
    if users == 1000:
        found = conclude(made(users=1000, f2f=0.4, t2f=0.4, v2f=0.07))
    assert found["status"] == status
    text = " ".join(found["verdict"])
    if users == 1:
        assert found["verdict"] == ["One user has no spread, so nothing can be concluded; measure more of them."]
        assert found["dropout"]["v2f"] == {"N@20": 0.09}
    elif users < 1000:
        assert "Pictures cannot be told from chance on so few users: v2f .090 (" in text and "no more than" not in text
        assert f"All this rests on {users} users, fewer than 30" in text
    else:
        assert "Pictures find no more than chance: v2f .070 (" in text and "fewer than 30" not in text
        assert "chance .070, 1,000 users, S_V = 1.04; the model cannot read them." in text


def test_few_users_after_a_start() -> None:
    now, start = made(users=6, f2f=0.4, t2f=0.4, v2f=0.1), made(users=6, seed=5, f2f=0.4, t2f=0.4, v2f=0.09).users
    found = conclude(now, start)
    assert unclear(found, "image") and not at_chance(found, "image") and found["status"] == "unknown"
    assert said(found, "Pictures show no change").endswith("S_V = 1.04; too few users to tell them from chance .070.")


def test_a_fall_is_a_fall_however_few_saw_it() -> None:
    """Each of five users found less: that is paired evidence, though the interval of v2f itself is wide."""
    v2f = np.array([0.0, 0.1, 0.3, 0.0, 0.2])
    more = np.array([0.3, 0.31, 0.29, 0.3, 0.3])
    start = made(f2f=v2f * 0 + 0.4, t2f=v2f * 0 + 0.4, v2f=v2f + more).users
    found = conclude(made(f2f=v2f * 0 + 0.4, t2f=v2f * 0 + 0.4, v2f=v2f), start)
    assert found["status"] == "collapsed" and fell(found, "image") and unclear(found, "image")
    assert not fell(found, "text") and not at_chance(found, "text"), "what did not move has not fallen"


def test_intervals_are_those_of_the_t_distribution() -> None:
    now, start = made(users=37, **GOOD), made(users=37, seed=5, f2f=0.2, t2f=0.2, v2f=0.3).users
    found = conclude(now, start)
    for name in GOOD:
        low, high = stats.t.interval(0.95, 36, loc=now.users[name].mean(), scale=stats.sem(now.users[name]))
        assert found["dropout"][name] == pytest.approx({"N@20": GOOD[name], "low": low, "high": high})
        paired = stats.ttest_rel(now.users[name], start[name]).confidence_interval()
        change = {"difference": GOOD[name] - start[name].mean(), "low": paired.low, "high": paired.high}
        assert found["change"][name] == pytest.approx(change)
    fusion = stats.ttest_rel(now.users["f2f"], now.users["t2f"]).confidence_interval()
    assert found["fusion"] == {
        "against": "t2f",
        "difference": pytest.approx(0.1),
        "low": pytest.approx(fusion.low),
        "high": pytest.approx(fusion.high),
    }


def test_users_are_paired_by_id() -> None:
    """The same figures in another order, and others besides: nothing has changed for anybody."""
    now = made(**GOOD, margin_text=about(0.1, 400, 8), margin_image=about(0.1, 400, 9))
    more = now.users.head(3).with_columns(pl.concat_str([pl.lit("x"), "user_id"]).alias("user_id"))
    shuffled = pl.concat([now.users.sample(fraction=1, shuffle=True, seed=0), more])
    found = conclude(now, shuffled)
    assert "change" not in found and "All is as at step 0: nothing has been trained." in found["verdict"]
    moved = shuffled.with_columns(pl.col("v2f") - 0.01)
    change = conclude(now, moved)["change"]
    assert change["v2f"] == pytest.approx({"difference": 0.01, "low": 0.01, "high": 0.01})
    assert change["f2f"] == pytest.approx({"difference": 0, "low": 0, "high": 0}, abs=1e-12)


def test_a_start_measured_on_others_is_ignored() -> None:
    now = made(**GOOD)
    for others in (now.users.head(399), now.users.clear(), now.users.with_columns(user_id=pl.lit("x"))):
        found = conclude(now, others)
        assert "change" not in found and found == conclude(now)
        assert said(found, "There is no step 0 of these users")


def test_margins_tell_training_from_none() -> None:
    """Ranks may be what they were after some training; margins are not."""
    margins = {"margin_text": about(0.1, 400, 8), "margin_image": about(0.1, 400, 9)}
    now, start = made(**GOOD, **margins), made(**GOOD, **margins).users
    assert "change" not in conclude(now, start)
    again = start.with_columns(pl.col("margin_text") + 1e-9)
    assert "change" not in conclude(now, again), "another machine sums in another order"
    trained = start.with_columns(pl.col("margin_text") + 1e-3)
    found = conclude(now, trained)
    assert found["change"]["f2f"]["difference"] == 0 and said(found, "Texts show no change: t2f .300 (")
    unknown = now.users.with_columns(margin_text=pl.when(pl.col("user_id") != "u3").then("margin_text"))
    assert "change" not in conclude(made(**GOOD, **{**margins, "margin_text": unknown["margin_text"]}), unknown)


def test_the_sentences_of_a_collapse() -> None:
    found = conclude(made(f2f=0.31, t2f=0.36, v2f=0.073), made(seed=5, f2f=0.2, t2f=0.2, v2f=0.124).users)
    own, change = found["dropout"]["v2f"], found["change"]["v2f"]
    assert found["verdict"][0] == (
        "Pictures have collapsed: v2f .073 fell 41% below step 0 (.124; -.051, 95%"
        f" -.0{-change['low'] * 1000:.0f} to -.0{-change['high'] * 1000:.0f}, 400 users), S_V = 1.04; they now find no"
        " more than chance .070."
    )
    assert own["low"] < CHANCE < own["high"]
    gained = f"Texts have gained: t2f .360 (.{1000 * found['dropout']['t2f']['low']:.0f} to .370) rose above step 0"
    assert found["verdict"][1].startswith(f"{gained} (.200; +.160, 95% +.1")
    assert found["verdict"][1].endswith("S_T = 1.91.")
    assert said(found, "Adding pictures to the query does harm: f2f .310 against t2f .360 (-.050, 95% -.0")


def test_the_sentence_about_the_fusion() -> None:
    assert said(conclude(made(**GOOD)), "Adding pictures to the query pays: f2f .400 against t2f .300 (+.100, 95% +.0")
    turned = conclude(made(f2f=0.4, t2f=0.2, v2f=0.3))
    assert said(turned, "Adding text to the query pays: f2f .400 against v2f .300")
    assert turned["fusion"]["against"] == "v2f"
    same = conclude(made(f2f=0.3, t2f=0.3, v2f=0.3))
    assert said(same, "Adding pictures to the query makes no difference that shows: f2f .300 against t2f .300 (")


def test_the_weaker_modality_comes_first() -> None:
    assert conclude(made(f2f=0.4, t2f=0.3, v2f=0.2))["verdict"][0].startswith("Pictures: v2f .200 (.190 to .210)")
    found = conclude(made(f2f=0.4, t2f=0.15, v2f=0.39))
    assert found["verdict"][0].startswith("Texts: t2f .150 (.140 to .160), chance .070, 400 users, S_T = 1.91.")
    assert said(found, "Texts stand") == (
        "Texts stand above chance by 25% of what pictures do, less than half (400 users)."
    )


def test_what_is_lost_in_the_fusion_alone() -> None:
    """Pictures say nothing beside texts, but do among themselves: the vectors are not to blame, their fusion is."""
    found = conclude(made(f2f=0.4, t2f=0.4, v2f=0.07, t2t=0.4, v2v=0.3))
    line = said(found, "Among themselves, pictures do say something: v2v .300 (.290 to .310), 400 users.")
    assert line.endswith("It is lost in the fused items.")
    below = conclude(made(f2f=0.4, t2f=0.4, v2f=0.03, t2t=0.4, v2v=0.3))
    assert said(below, "Among themselves, pictures do say something")
    for v2v, v2f in ((0.07, 0.07), (0.3, 0.2)):
        found = conclude(made(f2f=0.4, t2f=0.4, v2f=v2f, t2t=0.4, v2v=v2v))
        assert not [line for line in found["verdict"] if line.startswith("Among")]


@pytest.mark.parametrize(
    ("shares", "follows"),
    [((0.8, 0.1), "texts"), ((0.1, 0.8), "pictures"), ((0.5, 0.4), "both"), ((0.0, 0.0), "neither")],
)
def test_the_sentence_about_neighbours(shares: tuple[float, float], follows: str) -> None:
    overlap = {"text_image": 0.034, "text_fused": shares[0], "image_fused": shares[1], "chance": 0.001, "k": 10}
    line = said(conclude(made(**GOOD, neighbour_overlap={**overlap, "queries": 400})), "Of an item's")
    assert f"{shares[0]:.0%} are so in texts too and {shares[1]:.0%} in pictures: it follows {follows}." in line
    assert line.endswith("Texts and pictures agree on 3.4% (chance 0.1%; 400 items looked up).")


def test_the_sentence_about_lengths() -> None:
    def line(**norms: Any) -> list[str]:
        return [line for line in conclude(made(**GOOD, norms=norms))["verdict"] if "as long as" in line]

    longer = {"text": 9.0, "image": 3.0, "ratio": 3.0}
    assert line(histories=longer, items={"text": 1.0, "image": 1.0, "ratio": 1.0}) == [
        "History vectors of texts are 3.0 times as long as those of pictures (400 users): a plain sum leans to texts."
    ]
    assert line(items={"text": 1.0, "image": 4.0, "ratio": 0.25}) == [
        "Item vectors of pictures are 4.0 times as long as those of texts (all items): a plain sum leans to pictures."
    ]
    for ratio in (1.0, 1.4, 0.7):
        assert line(histories={**longer, "ratio": ratio}) == []


def test_the_sentences_about_users_zeros_and_gradients() -> None:
    margins = {"margin_text": np.repeat([0.2, 0.1], [300, 100]), "margin_image": np.full(400, 0.15)}
    start = made(**{**GOOD, "v2f": 0.2}, margin_text=np.full(400, 0.2), margin_image=np.full(400, 0.15)).users
    probes = [
        {"step": 0, "grad_cos_text": 0.71, "grad_cos_image": 0.7},
        {"step": 10, "grad_cos_image": -0.02},
        {"step": 30, "grad_cos_text": 0.9, "grad_cos_image": 0.1},
        {"step": 40, "f2f": 0.1},
    ]
    found = conclude(made(**GOOD, **margins, silent={"image of items": 1200}), start, probes)
    assert found["strong"] == {"text": 0.75, "users": 400, "flipped": 0.25}
    assert said(found, "By the margin of Eq. 6") == (
        "By the margin of Eq. 6, texts are the stronger modality for 75% of 400 users; for 25% it was the other one at"
        " step 0."
    )
    assert said(found, "1,200 vectors (image of items) are zero: for N@20 they stand at a right angle to everything")
    assert found["silent"] == {"image of items": 1200}
    assert said(found, "cos(g_total, g_T)") == (
        "cos(g_total, g_T) was .710 at step 0 and .900 at step 30; lowest .710, at step 0 (one batch of"
        " training samples)."
    )
    assert said(found, "cos(g_total, g_V)").endswith(
        "and .100 at step 30; lowest -.020, at step 10 (one batch of training samples)."
    )
    alone = conclude(made(**GOOD, **margins))
    assert said(alone, "By the margin").endswith("for 75% of 400 users.")


def test_one_modality_says_so() -> None:
    found = conclude(made(f2f=0.4, t2f=0.4))
    assert found["verdict"] == ["There is one modality alone, so nothing can be said of a balance between two."]


def test_every_sentence_with_a_figure_says_on_how_many_users() -> None:
    overlap = {"text_image": 0.03, "text_fused": 0.3, "image_fused": 0.3, "chance": 0.001, "k": 10, "queries": 77}
    margins = {"margin_text": about(0.1, 400, 8), "margin_image": about(0.1, 400, 9)}
    more = {**margins, "neighbour_overlap": overlap, "norms": {"histories": {"text": 3.0, "image": 1.0, "ratio": 3.0}}}
    start = made(seed=5, f2f=0.2, t2f=0.2, v2f=0.3).users.with_columns(**margins)
    for now in ({**GOOD, "v2f": 0.12}, {"f2f": 0.2, "t2f": 0.3, "v2f": 0.07, "t2t": 0.3, "v2v": 0.2}):
        for before in (None, start):
            figures = [line for line in conclude(made(**now, **more), before)["verdict"] if re.search(r"\d", line)]
            assert len(figures) > 4
            for line in figures:
                assert "400 users" in line or "77 items" in line or "There is no step 0" in line, line


def test_a_status_of_an_older_run_is_found_anew() -> None:
    """Once "collapsed" meant "at chance" too; the evidence tells the two apart, without what was added since."""
    for now, start, status in (
        ({**GOOD, "v2f": 0.07}, None, "at chance"),
        ({**GOOD, "v2f": 0.03}, None, "below chance"),
        ({**GOOD, "v2f": 0.07}, {"f2f": 0.2, "t2f": 0.2, "v2f": 0.2}, "collapsed"),
        (GOOD, None, "balanced"),
    ):
        found = conclude(made(**now), None if start is None else made(seed=5, **start).users)
        old = {name: value for name, value in found.items() if name != "users"} | {"status": "collapsed"}
        assert status_of(old) == status and below_chance(old, "image") == (now["v2f"] == 0.03)
        assert describe({"diagnosis": old, "geometry": {}}).startswith(STATUS[status])


# Many looks at one training


PROFILE = np.array([1.0, 0.63, 0.5, 0.43, 0.36, 0.3, 0.26, 0.23, 0.0, 0.0, 0.0, 0.0])
"""N@20 of a user by how well the target ranks: mostly nothing, as in a pool of a hundred."""


def drifting(users: int, looks: int, rng: np.random.Generator, late: float = 0.0) -> list[pl.DataFrame]:
    """N@20 of each user at step 0 and at every look: users differ, and nothing changes but noise.

    `late`: pictures lose this share of what they find, at the last three looks.
    """
    able = rng.beta(1, 2, (2, users))
    found = []
    for look in range(looks + 1):
        kept = 1 - (late if look > looks - 3 else 0.0)
        hit = rng.random((2, users)) < able * np.array([[1.0], [kept]])
        values = np.where(hit, PROFILE[rng.integers(len(PROFILE), size=(2, users))], 0.0)
        found.append(pl.DataFrame({"user_id": np.arange(users), "t2f": values[0], "v2f": values[1]}))
    return found


@pytest.mark.parametrize("users", [30, 128])
def test_a_whole_training_gives_a_false_alarm_seldom(users: int) -> None:
    """The stated level holds over all probes and both modalities; an interval of 95% at each would miss it by far."""
    rng, trainings, looks, alarms, uncorrected = np.random.default_rng(0), 500, 9, 0, 0
    for _ in range(trainings):
        start, *later = drifting(users, looks, rng)
        alarms += any(falls(now, start, looks) for now in later)
        uncorrected += any(falls(now, start, 1) for now in later)
    # Above the level by chance in one of a thousand such tests.
    assert alarms <= stats.binom.ppf(0.999, trainings, ERROR)
    assert uncorrected > 2 * ERROR * trainings


def test_a_real_collapse_is_caught_all_the_same() -> None:
    rng, looks, caught = np.random.default_rng(1), 9, 0
    for _ in range(100):
        start, *later = drifting(128, looks, rng, late=0.9)
        found = [falls(now, start, looks) for now in later]
        caught += any("image" in each for each in found)
        for each in found:
            assert all(change["level"] == pytest.approx(1 - 2 * ERROR / 18) for change in each.values())
    assert caught >= 95


def test_falls_by_hand() -> None:
    now, start = made(users=37, f2f=0.4, t2f=0.3, v2f=0.2).users, made(users=37, seed=5, t2f=0.3, v2f=0.3).users
    (view, found), *others = falls(now, start, 4).items()
    test = stats.ttest_rel(now["v2f"], start["v2f"]).confidence_interval(1 - 2 * 0.05 / 8)
    assert view == "image" and not others
    assert found == pytest.approx({"difference": -0.1, "low": test.low, "high": test.high, "level": 0.9875})
    assert falls(now, start.head(30), 4) == {}, "measured on others"
    assert falls(now.select("user_id", "f2f"), start, 4) == {}


@pytest.mark.parametrize(
    ("value", "plain", "signed"),
    [
        (0.218, ".218", "+.218"),
        (-0.0514, "-.051", "-.051"),
        (0.0004, ".0004", "+.0004"),
        (-0.00049, "-.0005", "-.0005"),
        (-0.00004, ".000", ".000"),
        (0.0, ".000", ".000"),
        (-0.0, ".000", ".000"),
        (0.9994, ".999", "+.999"),
        (0.9996, "1.00", "+1.00"),
        (-0.9996, "-1.00", "-1.00"),
        (1.0, "1.00", "+1.00"),
        (10.254, "10.25", "+10.25"),
        (-20.5, "-20.50", "-20.50"),
        (100.04, "100.04", "+100.04"),
    ],
)
def test_numbers(value: float, plain: str, signed: str) -> None:
    assert (number(value), number(value, sign=True)) == (plain, signed)


@given(st.floats(-200, 200))
def test_no_number_is_wrong_in_sign_or_digits(value: float) -> None:
    for text in (number(value), number(value, sign=True)):
        assert re.fullmatch(r"[+-]?\d*\.\d{2,4}", text) and not re.match(r"-\.?0*$", text)
        assert float(text) == pytest.approx(value, abs=5.01e-3 if abs(value) >= 0.9995 else 5.01e-4)
        assert not text.startswith(("0.", "+0.", "-0."))


def test_the_text_holds_every_table_and_note() -> None:
    measured = made(
        **GOOD,
        effective_rank={"text": 31.26},
        isotropy={"text": 0.4321},
        neighbour_overlap={
            "text_image": 0.034, "text_fused": 0.6, "image_fused": 0.5, "chance": 0.001, "k": 10, "queries": 400
        },
    )  # fmt: skip
    found = conclude(measured, made(seed=5, f2f=0.2, t2f=0.2, v2f=0.3).users)
    text = describe({"diagnosis": found, "geometry": measured.geometry}, ["7 users were left out"])
    assert text.startswith("collapsed: a modality finds significantly less than it did before") and text.endswith(
        "users were left out"
    )
    assert all(f"- {line}" in text for line in found["verdict"])
    assert re.search(r"v2f +0\.2500 +0\.2402 … 0\.2598 +0\.3000 +-0\.0\d+ … -0\.0\d+", text)
    assert re.search(r"text +1\.0000 +1\.8000 +-2\.0000 +1\.910 +31\.3 +0\.432", text)
    assert re.search(r"image +1\.0000 +1\.8000 +-2\.0000 +1\.040 +– +–", text)
    assert re.search(r"text, image +3\.4%", text) and re.search(r"chance +0\.1%", text)


@pytest.mark.parametrize(
    ("status", "now"),
    [
        ("below chance", {**GOOD, "v2f": 0.03}),
        ("at chance", {**GOOD, "v2f": 0.07}),
        ("harmful", {"f2f": 0.25, "t2f": 0.3, "v2f": 0.2}),
        ("unbalanced", {"f2f": 0.4, "t2f": 0.4, "v2f": 0.15}),
        ("balanced", GOOD),
        ("unknown", {"f2f": 0.4, "t2f": 0.4}),
    ],
)
def test_every_status_can_be_told(status: str, now: dict[str, float]) -> None:
    text = describe({"diagnosis": conclude(made(**now)), "geometry": {}})
    assert text.startswith(f"{STATUS[status]}\n") and STATUS[status].startswith(f"{status}: ")


def test_warnings_stand_before_the_verdict() -> None:
    text = describe({"diagnosis": conclude(made(**GOOD)), "geometry": {}}, ["warning: look here", "7 users left out"])
    assert text.startswith("warning: look here\n\nbalanced: ") and text.endswith("\n\nnote: 7 users left out")


def test_one_user_can_be_described() -> None:
    measured = made(f2f=[0.4], t2f=[0.3], v2f=[0.2])
    text = describe({"diagnosis": conclude(measured), "geometry": measured.geometry})
    assert re.search(r"v2f +0\.2000 +– +– +–", text)
