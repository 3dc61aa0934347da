"""What a preparation drops: how much, of what, for which reason, with two examples; in the manifest and as lines.

Units, each of which adds up (raw = kept + all losses, each thing under the first reason that took it away):

    events    lines of the log; those that cannot be read count too
    users     ids of users in lines that can be read
    items     ids of items in such lines or in the catalogue; of a catalogue that is asked for some ids alone (Amazon's
              holds many domains' products), those ids
    pictures  one an item that is kept
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

Unit = Literal["events", "users", "items", "pictures"]
UNITS: tuple[Unit, ...] = ("events", "users", "items", "pictures")
RAW: dict[str, Unit] = {"users": "users", "items": "items", "interactions": "events"}
"""What counts of a manifest (`raw`, `counts`) count."""

UNREADABLE = "line cannot be read"
NO_RATING = "no rating"
LOW_RATING = "rated too low"
COPY = "copy of an earlier event"
NOT_DRAWN = "user not drawn"
UNLISTED = "item not in the catalogue"
FEW_EVENTS = "user has fewer than 3 events"
CORE = "k-core"
OTHER_DOMAIN = "user only in "
"""Reasons why events are lost, besides those of their items (`stock`); the last is followed by a data set's name."""

EXAMPLES = 2
_LONGEST = 60  # characters of an example in a line
_ASKED = (NOT_DRAWN, LOW_RATING, OTHER_DOMAIN)
"""How reasons begin that somebody asked for: no cause for a warning, whatever their share."""
_WARN = 0.5
"""Share of a log's events from which on a single reason is warned of."""
_ALIKE = 0.1
"""Share of the ids that a catalogue lacks from which on another form of the same ids is no accident."""
_HELP = {
    "no title": "--require image or any keeps them",
    "no picture": "--require title or any keeps them",
    "picture missing": "files are looked for by column image, else by item id; --images says where",
    "picture ambiguous": "give the path of the file in column image",
    "picture not fetched": "run it again; downloads.jsonl says why",
    COPY: "--duplicates keep keeps them",
    "k-core": "--k-core sets how many events a user and an item need",
}
"""What to do, by words that a reason has."""
_NAMES = {"user_id": "user", "item_id": "item", "line": "line"}


@dataclass(frozen=True)
class Loss:
    """What is lost for one reason.

    Attributes:
        reason: why.
        count: how many.
        examples: what they are (user_id, item_id, line of the file) -> two of them at most; `catalogue`: an id that
            the catalogue has, to compare with.
    """

    reason: str
    count: int
    examples: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Tally:
    """Of one unit: how many there were, how many are kept, and what became of the others."""

    raw: int
    kept: int
    lost: Sequence[Loss]

    def plain(self) -> dict[str, Any]:
        """For the manifest."""
        lost = [{"reason": loss.reason, "count": loss.count, "examples": _lists(loss.examples)} for loss in self.lost]
        return {"raw": self.raw, "kept": self.kept, "lost": lost}


def tally(kept: int, losses: Iterable[Loss]) -> Tally:
    """Everything that is not kept is in the losses; those of nothing are left out."""
    lost = [loss for loss in losses if loss.count]
    return Tally(kept + sum(loss.count for loss in lost), kept, lost)


def plain(tallies: Mapping[Unit, Tally]) -> dict[str, dict[str, Any]]:
    """The tallies as the manifest has them, under `losses`."""
    return {unit: found.plain() for unit, found in tallies.items()}


def by_reason(table: pl.DataFrame, of: str) -> list[Loss]:
    """Losses from columns id, reason and, if there is one, count (else a row is one), in order of first appearance.

    Details of a reason (`picture not fetched: 404`) are left out. `of`: what the ids are of, user_id or item_id.
    """
    counted = pl.col("count").sum() if "count" in table.columns else pl.len()
    plain = table.with_columns(pl.col("reason").str.replace(": .*$", ""))
    found = plain.group_by("reason", maintain_order=True).agg(pl.col("id").head(EXAMPLES), counted.alias("lost"))
    return [Loss(reason, count, {of: ids}) for reason, ids, count in found.iter_rows()]


def lines(losses: Mapping[str, Mapping[str, Any]], said: Sequence[str] = ()) -> Iterator[str]:
    """The losses of a manifest for the terminal: warnings first, then a line a reason, aligned, the largest first.

    Reasons in `said` are left out.
    """
    rows: list[tuple[str, str, str, str]] = []
    helped: set[str] = set()  # what to do is said once
    for unit in [unit for unit in UNITS if unit in losses]:
        raw, lost = losses[unit]["raw"], [each for each in losses[unit]["lost"] if each["reason"] not in said]
        if unit == "pictures" and sum(each["count"] for each in lost if each["reason"] == "no picture") == raw:
            continue  # the items name none: nothing is lost
        verb = "missing" if unit == "pictures" else "dropped"
        for each in sorted(lost, key=lambda loss: -loss["count"]):
            what = f"{_share(each['count'], raw)}: {_why(each, helped)}"
            if unit == "events" and each["count"] > _WARN * raw and not each["reason"].startswith(_ASKED):
                yield f"warning: {verb} {each['count']:,} of {raw:,} {unit} {what}"
            else:
                rows.append((verb, f"{each['count']:,}", f"{raw:,} {unit}", what))
    widths = [max((len(row[place]) for row in rows), default=0) for place in range(3)]
    for verb, count, of, what in rows:
        yield f"{verb} {count:>{widths[1]}} of {of:<{widths[2]}} {what}"


def alike(missing: pl.Series, known: pl.Series) -> pl.DataFrame | None:
    """Which ids that a catalogue lacks it has in another form: columns missing, known, and place among `missing`.

    Forms: "12.0" and "12", leading zeros, blanks around, upper and lower case. None where these are so few that
    chance may do it.
    """
    lacking = pl.DataFrame(
        {"missing": missing, "form": _form(missing), "place": pl.int_range(len(missing), eager=True)}
    )
    own = pl.DataFrame({"known": known, "form": _form(known)}).filter(pl.col("form").is_in(lacking["form"].implode()))
    own = own.unique("form", keep="first", maintain_order=True)
    found = lacking.join(own, on="form", how="inner", maintain_order="left").select("missing", "known", "place")
    return found if found.height and found.height >= _ALIKE * len(missing) else None


def example(value: object) -> str:
    """An example as a line shows it."""
    return repr(value if not isinstance(value, str) or len(value) <= _LONGEST else f"{value[:_LONGEST]}…")


def _form(ids: pl.Series) -> pl.Series:
    return (
        ids.str.strip_chars().str.to_lowercase().str.replace(r"^([+-]?\d+)\.0*$", "${1}").str.replace(r"^0+(.)", "${1}")
    )


def _share(count: int, total: int) -> str:
    share = count / max(total, 1)
    return "(<0.1%)" if 0 < share < 0.0005 else f"({share:.1%})"


def _why(loss: Mapping[str, Any], helped: set[str]) -> str:
    shown = [
        f"{_NAMES[name]}{'s' if len(values) > 1 else ''} {', '.join(map(example, values))}"
        for name, values in loss["examples"].items()
        if name in _NAMES and values
    ]
    known = loss["examples"].get("catalogue")
    said = f"{loss['reason']}, such as {' and '.join(shown)}" if shown else str(loss["reason"])
    if known:
        said += f", where the catalogue has {example(known[0])}"
    help_ = next((help_ for part, help_ in _HELP.items() if part in loss["reason"]), None)
    if help_ is None or help_ in helped:
        return said
    helped.add(help_)
    return f"{said}; {help_}"


def _lists(examples: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in examples.items()}
