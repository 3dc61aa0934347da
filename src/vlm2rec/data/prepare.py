"""From a source's tables and pictures to a prepared data set, all of it or nothing.

Dropped, counted and listed, never an error: items without what is required, events of items that are in no catalogue,
events that are there twice, what falls out of the k-core, users with fewer than three events. Lines that cannot be read
are left out and listed too, as long as they are few. The directory is written beside its final place and renamed at the
end, so a run that is killed leaves no half data set (at worst a hidden `.NAME.….partial` folder, safe to delete).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vlm2rec.data.dataset import FORMAT, INTERACTIONS, ITEMS, Dataset, read_manifest
from vlm2rec.data.describe import target_warnings
from vlm2rec.data.pictures.fitting import FITS, Fit
from vlm2rec.data.preparing.making import Making, Progress
from vlm2rec.data.preparing.origin import origin
from vlm2rec.data.preparing.stock import NO_PICTURE, fault_of
from vlm2rec.data.preparing.writing import is_free, partial, put
from vlm2rec.data.sources import Source
from vlm2rec.errors import InputError
from vlm2rec.progress import Tell
from vlm2rec.progress import progress as show

if TYPE_CHECKING:
    from vlm2rec.data.fetching.client import Fetching

Duplicates = Literal["drop", "keep"]


def prepare(
    source: Source,
    out: Path | str,
    *,
    require: Sequence[str] = ("title", "image"),
    k_core: int = 5,
    picture_size: int = 224,
    picture_fit: Fit = "squash",
    drop_placeholders: bool = False,
    min_rating: float | None = None,
    users: int | None = None,
    seed: int = 0,
    duplicates: Duplicates = "drop",
    fetching: "Fetching | None" = None,
    pictures: Path | str | None = None,
    bad_lines: float = 0.01,
    progress: Progress | None = None,
    notice: Callable[[str], None] | None = None,
) -> Dataset:
    """Clean, cut, decode and write; return the data set at `out`.

    An `out` that already holds the same prepared data is left as it is (`notice` is told so); any other `out` that
    exists is refused.

    Args:
        source: where the raw tables and pictures come from.
        out: the directory to write.
        require: what an item must have to stay: "title", "image" or both; ("any",): either of them.
        k_core: every user and every item keeps at least so many events; 0 or 1 asks nothing more of them than that
            a user has three events (and, at 1, an item one).
        picture_size: pixels of a square's side, or of the longer side under `aspect`.
        picture_fit: `squash`, `letterbox` or `aspect`; see `vlm2rec.data.pictures.fitting.fit_picture`.
        drop_placeholders: whether a picture that only says that there is none counts as none.
        min_rating: events rated lower do not count; None: all do.
        users: how many users are drawn, of those with an event that counts, before items are looked at; None: all.
        seed: draws them.
        duplicates: whether an event that is there again (the same user, item and time) is left out (`drop`) or is one
            more event (`keep`).
        fetching: in what manner pictures that have an address and are not there are fetched; None: they are missing.
        pictures: where the pictures are, if not where the source has them: a folder or an archive.
        bad_lines: the largest share of a file's lines that may be unreadable.
        progress: told how far the work has come.
        notice: told in one line each what there is to say.

    Raises:
        InputError: an option or the raw data is wrong, nothing is left, or `out` is taken.
    """
    options = {
        "require": [part for part in ("title", "image", "any") if part in require],
        "k_core": k_core,
        "picture_size": picture_size,
        "picture_fit": picture_fit,
        "drop_placeholders": drop_placeholders,
        "min_rating": min_rating,
        "users": users,
        "seed": None if users is None else seed,
        "duplicates": duplicates,
    }
    out, pictures = Path(out), None if pictures is None else Path(pictures)
    _check(options, require)
    say, tell = notice or _silent, progress or _silent
    there = _check_out(out)
    raw = source.read()
    if pictures is not None:
        if not pictures.exists() and fetching is None:
            raise InputError(f"--images {pictures}: no such folder or archive; give one, or leave the option out")
        raw = replace(raw, pictures=pictures)
    made_from = origin(raw)
    if there is not None:
        if not _same_options(there, options):
            raise InputError(f"{out}: exists, prepared with other options; delete it or give another --out")
        known = made_from["files"] is not None and made_from["pictures"] is not None and there["options"] == options
        if known and there["made_from"] == made_from and not (fetching and _lacks_pictures(there)):
            return _unchanged(out, say)
    with partial(out) as folder:
        Making(raw, options, fetching, bad_lines, tell, say).write(folder, made_from)
        if there is None:
            try:
                put(folder, out)
            except InputError:
                if read_manifest(out) is None:  # else somebody else was faster, perhaps with the same data
                    raise
            else:
                return _opened(out, say)
        if not _same(folder, out, options):
            kept = there is not None and "duplicates" not in there["options"] and there["made_from"] == made_from
            older = (
                ", perhaps rows that are there twice (an older version kept them; --duplicates keep)" if kept else ""
            )
            raise InputError(f"{out}: exists and holds other data{older}; delete it or give another --out")
    return _unchanged(out, say)


@contextmanager
def bar() -> Iterator[Progress]:
    """Progress on the terminal to give to `prepare`: a bar for what is being done."""
    with ExitStack() as shown:
        now = ""
        tell: Tell = _silent

        def progress(stage: str, done: int, total: int | None) -> None:
            nonlocal now, tell
            if stage != now:
                shown.close()
                now, tell = stage, shown.enter_context(show(stage, total))
            tell(done, "")

        yield progress


def _check(options: dict[str, Any], require: Sequence[str]) -> None:
    for part in require:
        if part not in ("title", "image", "any"):
            raise InputError(f"--require {part}: unknown; give title, image, both or any")
    if not require:
        raise InputError("--require: is empty; give title, image, both or any")
    if "any" in require and len(require) > 1:
        raise InputError("--require any: means a title or a picture, so it stands alone; leave the others out")
    if options["k_core"] < 0:
        raise InputError(f"--k-core {options['k_core']}: cannot be negative; give 0 to switch it off")
    if options["duplicates"] not in get_args(Duplicates):
        raise InputError(f"--duplicates {options['duplicates']}: unknown; give drop or keep")
    if not 8 <= options["picture_size"] <= 4096:
        raise InputError(f"--picture-size {options['picture_size']}: give pixels between 8 and 4096")
    if options["picture_fit"] not in FITS:
        raise InputError(f"--picture-fit {options['picture_fit']}: unknown; give one of {', '.join(FITS)}")
    if options["users"] is not None and options["users"] < 1:
        raise InputError(f"--users {options['users']}: draw at least one")


def _check_out(out: Path) -> dict[str, Any] | None:
    """The manifest of a data set that is there already; None if the place is free."""
    if out.is_symlink() or out.resolve() == Path.cwd():
        raise InputError(f"{out}: is a link or the folder you are in, which cannot be replaced; give another --out")
    if is_free(out):
        return None
    there = read_manifest(out)
    if there is None:
        raise InputError(f"{out}: exists and is no prepared data set; give another --out")
    if there["format"] != FORMAT:
        raise InputError(f"{out}: prepared by another version of vlm2rec; delete it or give another --out")
    return there


def _lacks_pictures(there: dict[str, Any]) -> bool:
    """Whether a data set lacks pictures that may be fetched now."""
    gone = [*there["dropped"]["item"], *there["dropped"]["picture"]]
    return any(fault_of(reason) == "missing" and NO_PICTURE not in reason for reason in gone)


def _same_options(there: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether a data set was prepared with these options, as far as its manifest knows them.

    Data sets that are older than an option do not say how they were made; whether they hold the same data can only be
    seen by making it again.
    """
    return bool({**options, **there["options"]} == options)


def _same(folder: Path, out: Path, options: dict[str, Any]) -> bool:
    """Whether two directories hold the same, further columns included."""
    made, there = read_manifest(folder), read_manifest(out)
    if made is None or there is None or not _same_options(there, options):
        return False
    same = all(made.get(key) == there.get(key) for key in ("fingerprint", "times", "time_unit"))
    return same and all(cmp(folder / name, out / name, shallow=False) for name in (ITEMS, INTERACTIONS))


def _unchanged(out: Path, say: Callable[[str], None]) -> Dataset:
    say(f"{out} already holds this data; nothing to do")
    return _opened(out, say)


def _opened(out: Path, say: Callable[[str], None]) -> Dataset:
    dataset = Dataset.load(out)
    for warning in target_warnings(dataset):
        say(warning)
    return dataset


def _silent(*_: object) -> None:
    pass
