"""The findings of a comparison as sentences.

Every sentence follows from the numbers by the thresholds written here, for a good outcome and a bad one alike.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlm2rec.compare import COUNTING
from vlm2rec.comparison import SETS, Comparison, Method, PairedTest, p_text
from vlm2rec.diagnostics.status import status
from vlm2rec.report.figures import number

NAMES = {
    "vanilla": "Vanilla",
    "sft": "SFT",
    "vlm2rec": "VLM2Rec",
    "poprec": "PopRec",
    "itemknn": "item-kNN",
    "random": "Random",
    "chance": "Chance",
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
    "bert": "BERT",
    "clip": "CLIP",
    "pair": "Text + picture encoder",
    "llmemb": "LLMEmb",
    "llm2rec": "LLM2Rec",
    "slim": "SLIM",
    "vlm_prompt": "VLM_Prompt",
    "notellm2": "NoteLLM-2",
    "hybrid": "Hybrid",
    "transfer": "Transfer",
}
STILL = 0.05
"""A relative change smaller than this counts as none."""

_SIDES = {"v2f": ("pictures", "image"), "t2f": ("text", "text")}


@dataclass(frozen=True)
class Finding:
    """A heading and the sentences under it."""

    heading: str
    text: str


def display(label: str) -> str:
    """A method's label with the usual spelling of its name: 'sft (objective.alpha=5)' -> 'SFT (objective.alpha=5)'."""
    kind, space, rest = label.partition(" ")
    return NAMES.get(kind, kind) + space + rest


def diagnosis_of(method: Method) -> Mapping[str, Any]:
    """The diagnosis of the run of the lowest seed; empty where it has none."""
    found = method.runs[0].results().get("diagnosis")
    return found if isinstance(found, Mapping) else {}


def status_of(method: Method) -> str:
    """'collapsed', or where seeds differ 'collapsed (3 of 5 seeds), balanced (2)'; empty without a diagnosis."""
    found = [run.results().get("diagnosis") for run in method.runs]
    # From the evidence, not as it was written: "collapsed" once meant "at chance" too.
    counts = Counter(status(each) for each in found if each).most_common()
    if len(counts) < 2:
        return counts[0][0] if counts else ""
    (first, often), *others = counts
    rest = "".join(f", {other} ({count})" for other, count in others)
    return f"{first} ({often} of {len(found)} seeds){rest}"


def findings(comparison: Comparison) -> list[Finding]:
    """What happened to each modality, whether fusing pays, who is ahead, and how that stands against counting."""
    found = [
        finding
        for method in comparison.methods
        for finding in (_diagnosed(method) if diagnosis_of(method) else _modalities(method))
    ]
    found += _duels(comparison)
    found += _sanity(comparison)
    found += _ceiling(comparison)
    return found


def _diagnosed(method: Method) -> Iterator[Finding]:
    """Status and first sentences of a diagnosis: of what was trained, or cannot read a modality as it comes."""
    found = diagnosis_of(method)
    sentences = [str(sentence) for sentence in found.get("verdict", ())]
    unreadable = status(found) in ("at chance", "below chance")
    if (method.kind != "vanilla" or unreadable) and status(found) != "unknown" and sentences:
        told = " ".join(sentences[:2])
        seed = f"Seed {method.seeds[0]}: " if len(method.seeds) > 1 else ""
        yield Finding(f"{display(method.label)}: {status_of(method)}", seed + told)


def _modalities(method: Method) -> Iterator[Finding]:
    """The picture's fate in training, and the text's; then fusion against the better of the two."""
    start = {view: method.mean(f"reference.dropout.{view}") for view in _SIDES}
    end = {view: method.mean(f"dropout.{view}") for view in ("f2f", *_SIDES)}
    v0, v1, t0, t1, both = start["v2f"], end["v2f"], start["t2f"], end["t2f"], end["f2f"]
    if method.kind == "vanilla" or v0 is None or v1 is None or t0 is None or t1 is None or both is None:
        return
    name = display(method.label)
    moves = f"Histories of pictures alone go from {number(v0)} before training to {number(v1)} ({_percent(v1, v0)})"
    moves += f", of text alone from {number(t0)} to {number(t1)} ({_percent(t1, t0)}{_users(method)})."
    before, after = method.mean("reference.geometry.image.S"), method.mean("geometry.image.S")
    if before is not None and after is not None:
        moves += f" Separability of the image space: {before:.2f} to {after:.2f}."
    yield Finding(f"{name}: {_fate(v0, v1, t0, t1)}", f"{moves} {_fusion(both, t1, v1)}")


def _fate(picture_before: float, picture: float, text_before: float, text: float) -> str:
    """v2f and t2f before and after, in words."""
    seen, read = _course(picture_before, picture), _course(text_before, text)
    said = {
        -1: "the picture modality got worse",
        0: "the picture modality stood still",
        1: "the picture modality learned",
    }
    if seen == 1 and read == 1 and picture - picture_before < (text - text_before) / 2:
        return said[seen] + ", less than half as much as text"
    if read == 1:
        return said[seen] + (", as did text" if seen == 1 else " while text learned")
    if read == -1:
        return said[seen] + (" and so did text" if seen == -1 else ", text got worse")
    return said[seen] + (", as did text" if seen == 0 else ", text stood still")


def _course(before: float, after: float) -> int:
    """-1 for a fall, 0 for no change to speak of, 1 for a gain."""
    change = after / before - 1 if before else float(after > 0)
    return -1 if change <= -STILL else 1 if change >= STILL else 0


def _fusion(both: float, text: float, image: float) -> str:
    single, name = max((text, "text"), (image, "pictures"))
    change = both / single - 1 if single else 0.0
    if change <= -0.01:
        return (
            f"Fused ({number(both)}) it finds less than with {name} alone: adding the other side costs {-change:.0%}."
        )
    if change < 0.01:
        return f"Fused ({number(both)}) it finds as much as with {name} alone: adding the other side changes nothing."
    return f"Fused ({number(both)}) it finds more than with {name} alone: adding the other side gains {change:.0%}."


def _duels(comparison: Comparison) -> Iterator[Finding]:
    """VLM2Rec against SFT, on everything tested of fused and picture queries."""
    kinds = {method.label: method.kind for method in comparison.rows}
    pairs = dict.fromkeys((test.first, test.second) for test in comparison.tests)
    for first, second in pairs:
        if (kinds[first], kinds[second]) != ("vlm2rec", "sft"):
            continue
        tests = {test.measure: test for test in comparison.tests if (test.first, test.second) == (first, second)}
        wanted = [f"{name}.{view}" for view in ("f2f", "v2f") for name in ("sampled", "matched")]
        said = [_verdict(tests[measure]) for measure in wanted if measure in tests]
        if said:
            users, made = next(iter(tests.values())).users, len(comparison.tests)
            note = f" Paired over {users} users; p after Holm's correction over {made} comparisons."
            # What one seed shows another may not: that belongs into the sentence that says who is ahead.
            on_one = "on one seed, " if any(test.seeds < 2 for test in tests.values()) else ""
            text = on_one + "; ".join(said)
            yield Finding(f"{display(first)} against {display(second)}", f"{text[0].upper()}{text[1:]}.{note}")


def _verdict(test: PairedTest) -> str:
    candidates, view = test.measure.split(".")
    p = test.p if test.p_holm is None else test.p_holm
    side = "level (no detectable difference)" if p >= 0.05 else "ahead" if test.difference > 0 else "behind"
    what = {"f2f": "fused", "v2f": "with pictures alone", "t2f": "with text alone"}[view]
    shown = ("+" if test.difference >= 0 else "") + number(test.difference)
    return f"{what} on {candidates} candidates {side}, {shown} (p {p_text(p) if p < 1e-4 else '= ' + p_text(p)})"


def _sanity(comparison: Comparison) -> Iterator[Finding]:
    """The best counting method against the best learned method, on each candidate set."""
    counting = [method for method in comparison.rows if method.kind in COUNTING and method.kind != "random"]
    learned = [method for method in comparison.methods if method.kind not in COUNTING]
    said = []
    for name in SETS:
        figure = f"retrieval.{name}.N@20"
        rival, best = _best(counting, figure), _best(learned, figure)
        if rival is not None and best is not None:
            side = "above" if rival[0] > best[0] else "below" if rival[0] < best[0] else "level with"
            counted, taught = (f"{display(one.label)} {number(mean)}" for mean, one in (rival, best))
            said.append(f"{name}: {counted}, {side} {taught}")
    if said:
        users = f"{comparison.evaluated_users:,} users"
        yield Finding(
            "Against counting",
            f"N@20 of the best counting method and the best learned method ({users}). " + "; ".join(said) + ".",
        )


def _ceiling(comparison: Comparison) -> Iterator[Finding]:
    """How far the best method gets of what an oracle reaches, where the data's makers know it."""
    learned = [method for method in comparison.methods if method.kind not in COUNTING]
    oracle = _best(learned, "oracle.sampled.N@20")
    best = _best(learned, "retrieval.sampled.N@20")
    if oracle is not None and best is not None and oracle[0] > 0:
        yield Finding(
            "Against the best possible",
            f"An oracle that knows the shoppers' tastes reaches {number(oracle[0])} on sampled candidates;"
            f" {display(best[1].label)} reaches {number(best[0])}, {best[0] / oracle[0]:.0%} of it"
            f" ({comparison.evaluated_users:,} users).",
        )


def _best(methods: list[Method], figure: str) -> tuple[float, Method] | None:
    scored = [(mean, method) for method in methods if (mean := method.mean(figure)) is not None]
    return max(scored, key=lambda pair: pair[0]) if scored else None


def _users(method: Method) -> str:
    """ "; 500 users", or nothing where a run does not say."""
    count = method.mean("data.evaluated_users")
    return "" if count is None else f"; {count:,.0f} users"


def _percent(after: float, before: float) -> str:
    if not before:
        return "from nothing"
    return f"{after / before - 1:+.0%}".replace("-", "−")
