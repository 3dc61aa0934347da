"""What `data prepare` was asked for: a TOML file, with the options of the command line over it."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from vlm2rec.config import Section, read_toml
from vlm2rec.data.sources import Source
from vlm2rec.data.sources.amazon import Amazon
from vlm2rec.data.sources.local import Local
from vlm2rec.data.sources.movielens import MovieLens
from vlm2rec.data.sources.recbole import RecBole
from vlm2rec.data.sources.shop import ShopWorld
from vlm2rec.errors import InputError

if TYPE_CHECKING:
    from vlm2rec.data.fetching.client import Fetching

SourceName = Literal["local", "amazon-2014", "amazon-2018", "amazon-2023", "movielens", "recbole", "shop"]


class Preparation(Section):
    """Everything that can be asked of `data prepare`; the names are those of its options."""

    require: tuple[str, ...] = ("title", "image")
    k_core: int = 5
    min_rating: float | None = None
    users: int | None = None
    seed: int = Field(0, ge=0)
    duplicates: Literal["drop", "keep"] = "drop"
    picture_size: int = 224
    picture_fit: Literal["squash", "letterbox", "aspect"] = "squash"
    drop_placeholders: bool = False
    images: Path | None = None
    download_images: bool = False
    bad_lines: float = Field(0.01, ge=0, le=1)
    domain: str | None = None
    columns: dict[str, str] = Field({})
    time_format: str | None = None
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    fetching: dict[str, float | str | bool] = Field({})

    @field_validator("require", mode="before")
    @classmethod
    def _several(cls, given: Any) -> Any:
        return [part.strip() for part in given.split(",")] if isinstance(given, str) else given

    @field_validator("columns", mode="before")
    @classmethod
    def _flat(cls, given: Any) -> Any:
        """`items.item_id = "id"` is a table within the table, in TOML."""
        if not isinstance(given, dict):
            return given
        flat: dict[str, Any] = {}
        for name, theirs in given.items():
            flat |= (
                {f"{name}.{ours}": own for ours, own in theirs.items()} if isinstance(theirs, dict) else {name: theirs}
            )
        return flat

    def source(self, name: SourceName, path: Path | None) -> Source:
        """The source of that name. Raises InputError where it takes no such option, or needs a path."""
        takes: dict[str, tuple[str, ...]] = {
            "local": ("columns", "time_format", "time_unit"),
            "recbole": ("columns", "time_format", "time_unit"),
            "amazon": ("domain",),
        }
        kind = name.partition("-")[0]
        for option in ("columns", "time_format", "time_unit", "domain"):
            if getattr(self, option) and option not in takes.get(kind, ()):
                raise InputError(f"data prepare {name}: has no use for {option.replace('_', '-')}; leave it out")
        if name == "shop":
            return ShopWorld(seed=self.seed)
        if path is None:
            raise InputError(f"data prepare {name}: give the folder that holds the raw data")
        match name:
            case "amazon-2014":
                return Amazon(path, "2014", self.domain)
            case "amazon-2018":
                return Amazon(path, "2018", self.domain)
            case "amazon-2023":
                return Amazon(path, "2023", self.domain)
            case "movielens":
                return MovieLens(path)
            case "recbole":
                return RecBole(path, self.columns, self.time_format, self.time_unit)
            case "local":
                return Local(path, self.columns, self.time_format, self.time_unit)

    def manners(self) -> "Fetching | None":
        """How pictures are fetched; None: they are not."""
        from vlm2rec.data.fetching.client import Fetching

        known = [field.name for field in dataclasses.fields(Fetching)]
        for key in self.fetching:
            if key not in known:
                raise InputError(f"unknown key fetching.{key}; {_hint(key, known)}")
        try:
            manners = TypeAdapter(Fetching).validate_python(self.fetching)
        except ValidationError as error:
            raise InputError(f"fetching.{_told(error)}") from None
        return manners if self.download_images else None


def asked(file: Path | None, options: Mapping[str, Any]) -> Preparation:
    """Options that were given, over those of a file. Raises InputError naming the key that is wrong."""
    if file is not None and not file.is_file():
        raise InputError(f"{file}: no such file; it holds options of `data prepare`, as docs/datasets.md shows")
    raw = {} if file is None else read_toml(file)
    given = {name: value for name, value in options.items() if value is not None}
    fetching = given.pop("fetching", {})
    merged = {**raw, **given}
    if fetching and isinstance(merged.setdefault("fetching", {}), dict):
        merged["fetching"] = {**merged["fetching"], **fetching}
    try:
        return Preparation.model_validate(merged)
    except ValidationError as error:
        where = f"{file}: " if file is not None else ""
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            key = ".".join(map(str, first["loc"]))
            raise InputError(f"{where}unknown key {key}; {_hint(key, list(Preparation.model_fields))}") from None
        raise InputError(f"{where}{_told(error)}") from None


def pairs(text: str) -> dict[str, str]:
    """`user_id=uid,items.item_id=sku` as a mapping from our names to theirs."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        ours, equals, theirs = part.partition("=")
        if not equals or not ours.strip() or not theirs.strip():
            raise InputError(f"--columns {text}: write it as ours=theirs,ours=theirs, as in user_id=uid,item_id=sku")
        found[ours.strip()] = theirs.strip()
    return found


def _told(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))} = {first['input']!r}: {first['msg']}"


def _hint(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
