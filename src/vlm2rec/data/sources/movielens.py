"""The `movielens` source: any release of the MovieLens data, as its archive unpacks."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.broken import Broken
from vlm2rec.data.sources.delimited import first_line, read_plain
from vlm2rec.data.sources.local import pictures_in
from vlm2rec.data.sources.quoted import read_quoted
from vlm2rec.errors import InputError

_RATING = ("user_id", "item_id", "rating", "timestamp")
_NO_GENRE = "(no genres listed)"
# Columns of u.item, as the README of the 100K release has them; the last nineteen say whether a film is of that genre.
_FILM = ("item_id", "title", "release", "video_release", "imdb", "no_genre")
_GENRES = (
    *("Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy"),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
# Articles that stand behind a title: English, French, Italian, Spanish, Portuguese, German, Dutch, Scandinavian.
_ARTICLES = (
    "The|A|An|L'|Le|La|Les|Un|Une|Il|Lo|Gli|I|Uno|Una|Un'|El|Los|Las|Unos|Unas|O|Os|As|Um|Uma|Der|Die|Das|Ein|Eine|"
    "De|Het|Een|Den|Det|En|Ett|Et"
)
_MOVED = re.compile(rf"(\s*(?:a\.k\.a\. |aka )?)(\S.*), ({_ARTICLES})(\s*)")


@dataclass(frozen=True)
class MovieLens:
    """A folder of MovieLens: 100K (u.data, u.item), 1M and 10M (.dat), or 20M, 25M, 32M and the latest ones (.csv).

    Titles have their article in front again ("Matrix, The (1999)" is "The Matrix (1999)"), `category` has the genres,
    `rating` is kept. MovieLens has no pictures: put them into `posters/` or `images/`, named by the film's number.

    Attributes:
        path: the folder.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # given as text, it is a path all the same

    def read(self) -> RawData:
        """Open the ratings and read the films. Raises InputError if it is no folder of one release."""
        found = [release for release in _RELEASES if (self.path / release.ratings).is_file()]
        if not found:
            names = ", ".join(release.ratings for release in _RELEASES)
            raise InputError(f"{self.path}: has none of {names}; give the folder that a MovieLens archive unpacks to")
        if len(found) > 1:
            raise InputError(f"{self.path}: has both {found[0].ratings} and {found[1].ratings}; keep one release")
        release, broken = found[0], Broken()
        ratings, films = self.path / release.ratings, self.path / release.films
        if not films.is_file():
            raise InputError(f"{self.path}: has {ratings.name} but no {films.name}; both are in the archive")
        return RawData(
            name=self.path.resolve().name,
            items=_items(release.read_films(films, broken)),
            interactions=(_rated(table) for table in release.read_ratings(ratings, broken)),
            pictures=pictures_in(self.path, "posters"),
            items_from=str(films),
            interactions_from=str(ratings),
            files=[films, ratings],
            broken=broken,
            time_unit="s",
        )


def article_first(title: str) -> str:
    """A title with its article back in front; the same for each other title of the film, in parentheses."""
    return re.sub(r"[^()]+", lambda part: _in_front(part[0]), title)


def _in_front(part: str) -> str:
    found = _MOVED.fullmatch(part)
    if found is None:
        return part
    before, title, article, after = found.groups()
    return f"{before}{article}{'' if article.endswith(chr(39)) else ' '}{title}{after}"


def _rated(table: pl.DataFrame) -> pl.DataFrame:
    return table.with_columns(pl.col("rating").cast(pl.Float32, strict=False))


def _items(films: pl.DataFrame) -> pl.DataFrame:
    titles = [None if title is None else article_first(title) for title in films["title"]]
    category = pl.col("category").replace(_NO_GENRE, None).str.replace_all("|", ", ", literal=True)
    return films.select(
        "item_id", pl.Series("title", titles, pl.String), pl.col("item_id").alias("image"), category, LINE
    )


def _ratings_100k(path: Path, broken: Broken) -> Iterator[pl.DataFrame]:
    return read_plain(path, "\t", _RATING, broken)


def _films_100k(path: Path, broken: Broken) -> pl.DataFrame:
    films = pl.concat(read_plain(path, "|", [*_FILM, *_GENRES], broken, encoding="latin-1"))
    named = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
    category = pl.concat_str(named, separator="|", ignore_nulls=True).replace("", None)
    return films.with_columns(category.alias("category"))


def _ratings_dat(path: Path, broken: Broken) -> Iterator[pl.DataFrame]:
    return read_plain(path, "::", _RATING, broken)


def _films_dat(path: Path, broken: Broken) -> pl.DataFrame:
    return pl.concat(read_plain(path, "::", ["item_id", "title", "category"], broken, encoding=_encoding(path)))


def _ratings_csv(path: Path, broken: Broken) -> Iterator[pl.DataFrame]:
    _check_header(path, "userId,movieId,rating,timestamp")
    return read_plain(path, ",", _RATING, broken, header=True)


def _films_csv(path: Path, broken: Broken) -> pl.DataFrame:
    _check_header(path, "movieId,title,genres")
    return pl.concat(read_quoted(path, broken)).rename({"movieId": "item_id", "genres": "category"})


def _encoding(path: Path) -> str:
    """Of movies.dat: UTF-8 (10M) or Latin-1 (1M), whichever most lines with accents can be read in."""
    accented = [line for line in path.read_bytes().split(b"\n") if not line.isascii()]
    damaged = sum("\ufffd" in line.decode(errors="replace") for line in accented)
    return "latin-1" if damaged > len(accented) / 2 else "utf-8"


def _check_header(path: Path, wanted: str) -> None:
    found = first_line(path)
    if found != wanted:
        raise InputError(f"{path}: its first line is {found[:80]!r}, in MovieLens it is {wanted!r}; fetch it again")


class _Release(NamedTuple):
    ratings: str
    read_ratings: Callable[[Path, Broken], Iterator[pl.DataFrame]]
    films: str
    read_films: Callable[[Path, Broken], pl.DataFrame]


_RELEASES = (
    _Release("u.data", _ratings_100k, "u.item", _films_100k),
    _Release("ratings.dat", _ratings_dat, "movies.dat", _films_dat),
    _Release("ratings.csv", _ratings_csv, "movies.csv", _films_csv),
)
