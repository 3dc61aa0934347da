import random
from pathlib import Path

import polars as pl
import pytest
from conftest import write_pictures
from mutations import mutated

from vlm2rec.data.prepare import prepare
from vlm2rec.data.sources import LINE, RawData
from vlm2rec.data.sources.movielens import MovieLens, article_first
from vlm2rec.errors import InputError

# Title in the file, title as people say it, genres.
FILMS = [
    ("Matrix, The (1999)", "The Matrix (1999)", "Action|Sci-Fi|Thriller"),
    ("Misérables, Les (1995)", "Les Misérables (1995)", "Drama|Musical"),
    ('"Great Performances" Cats (1998)', '"Great Performances" Cats (1998)', "Musical"),
    ("Honey, I Shrunk the Kids (1989)", "Honey, I Shrunk the Kids (1989)", "Comedy"),
    ("unknown", "unknown", ""),
]
RATINGS = [(f"{user}", f"{film}", f"{1 + (user + film) % 5}", f"{900_000_000 + 7 * user + film}")
           for user in range(1, 9) for film in range(1, 6)]  # fmt: skip
GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
RELEASES = ("100k", "1m", "10m", "32m")


def write(folder: Path, release: str) -> Path:
    """The same films and ratings as a release has them."""
    folder.mkdir(exist_ok=True)
    films: list[str] = []
    for number, (title, _, genres) in enumerate(FILMS, start=1):
        if release == "100k":
            flags = "|".join(str(int(genre in (genres.split("|") if genres else ["unknown"]))) for genre in GENRES)
            films.append(f"{number}|{title}|01-Jan-1995||http://us.imdb.com/M|{flags}")
        elif release == "32m":
            title = f'"{title}"'.replace('"G', '""G').replace('s" ', 's"" ') if "," in title or '"' in title else title
            films.append(f"{number},{title},{genres or '(no genres listed)'}")
        else:
            films.append(f"{number}::{title}::{genres}")
    separator = {"100k": "\t", "32m": ","}.get(release, "::")
    log = [separator.join(row) for row in RATINGS]
    names = {"100k": ("u.item", "u.data"), "32m": ("movies.csv", "ratings.csv")}
    if release == "32m":
        films.insert(0, "movieId,title,genres")
        log.insert(0, "userId,movieId,rating,timestamp")
    encoding = "latin-1" if release in ("100k", "1m") else "utf-8"
    for name, lines in zip(names.get(release, ("movies.dat", "ratings.dat")), (films, log), strict=True):
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return folder


def tables(raw: RawData) -> tuple[pl.DataFrame, pl.DataFrame]:
    assert isinstance(raw.items, pl.DataFrame) and not isinstance(raw.interactions, pl.DataFrame)
    return raw.items, pl.concat(raw.interactions)


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_gives_the_same_tables(release: str, tmp_path: Path) -> None:
    raw = MovieLens(write(tmp_path / "ml", release)).read()
    items, log = tables(raw)
    ids = [f"{number}" for number in range(1, 6)]
    assert items["item_id"].to_list() == items["image"].to_list() == ids
    assert items["title"].to_list() == [title for _, title, _ in FILMS]
    assert items["category"].to_list() == [genres.replace("|", ", ") or None for *_, genres in FILMS]
    rows = log.select("user_id", "item_id", pl.col("rating").cast(pl.Int64).cast(pl.String), "timestamp").rows()
    assert rows == RATINGS
    first = 2 if release == "32m" else 1
    assert log[LINE].to_list() == list(range(first, first + len(RATINGS)))
    assert raw.broken.table().is_empty()
    assert raw.broken.read == {raw.items_from: 5, raw.interactions_from: len(RATINGS)}
    assert (raw.name, raw.time_unit) == ("ml", "s")


def test_it_is_prepared_with_posters_named_by_number(tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", "1m")
    write_pictures(folder / "posters", ["1.jpg", "2.png", "3.jpg", "5.jpg"])
    made = prepare(MovieLens(folder), tmp_path / "out", k_core=3)
    assert made.item_ids == ["1", "2", "3", "5"]
    assert made.titles[0] == "The Matrix (1999)"
    assert made.n_interactions == 32
    assert made.manifest["time_unit"] == "s"


@pytest.mark.parametrize(
    ("title", "said"),
    [
        ("City of Lost Children, The (Cité des enfants perdus, La) (1995)",
         "The City of Lost Children (La Cité des enfants perdus) (1995)"),
        ("Good, the Bad and the Ugly, The (Buono, il brutto, il cattivo, Il) (1966)",
         "The Good, the Bad and the Ugly (Il Buono, il brutto, il cattivo) (1966)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Tin Drum, The (Blechtrommel, Die) (1979)", "The Tin Drum (Die Blechtrommel) (1979)"),
        ("Madness (a.k.a. Thing, The) (1990)", "Madness (a.k.a. The Thing) (1990)"),
        ("Vitelloni, I (a.k.a. The Young and the Passionate) (1953)",
         "I Vitelloni (a.k.a. The Young and the Passionate) (1953)"),
        ("Line King: Al Hirschfeld, The (1996)", "The Line King: Al Hirschfeld (1996)"),
        ("American in Paris, An", "An American in Paris"),
        ("Dancer, Texas Pop. 81 (1998)", "Dancer, Texas Pop. 81 (1998)"),
        ("I Love You, I Love You Not (1996)", "I Love You, I Love You Not (1996)"),
        ("Theatre, Theory (1999)", "Theatre, Theory (1999)"),
        ("Blaze, the (1999)", "Blaze, the (1999)"),
        (", The (1999)", ", The (1999)"),
        ("", ""),
    ],
)  # fmt: skip
def test_articles_come_back_in_front(title: str, said: str) -> None:
    assert article_first(title) == said


def test_one_damaged_line_does_not_change_the_encoding(tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", "10m")
    lines = (folder / "movies.dat").read_bytes().split(b"\n")
    lines[3:3] = ["6::Amélie (2001)::Comedy".encode(), b"7::Am\xe9lie again (2001)::Comedy"]
    (folder / "movies.dat").write_bytes(b"\n".join(lines))
    raw = MovieLens(folder).read()
    items, _ = tables(raw)
    assert items["title"][1] == "Les Misérables (1995)" and items["title"][3] == "Amélie (2001)"
    assert raw.broken.table()["line"].to_list() == [5]


@pytest.mark.parametrize("release", RELEASES)
def test_spoilt_lines_are_listed_and_the_others_read(release: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", release)
    rng = random.Random(release)
    for path in folder.iterdir():
        lines = path.read_bytes().splitlines() * 60
        header = [lines[0]] if release == "32m" else []
        path.write_bytes(b"\n".join(header + mutated(lines[len(header) :], rng)))
    raw = MovieLens(folder).read()
    items, log = tables(raw)
    whole = {(*row, line) for *row, line in log.with_columns(pl.col("rating").cast(pl.Int64, strict=False)).iter_rows()}
    assert len({row[:2] for row in whole} & {row[:2] for row in RATINGS}) == len(RATINGS)
    broken = raw.broken.table()
    assert set(broken["file"]) == {raw.items_from, raw.interactions_from}
    for where, table in ((raw.items_from, items), (raw.interactions_from, log)):
        listed = broken.filter(file=where)["line"]
        assert listed.is_unique().all() and table[LINE].is_unique().all()
        assert not set(listed) & set(table[LINE])
        assert len(listed) + table.height == raw.broken.read[where]


def no_films(folder: Path) -> None:
    (folder / "movies.dat").unlink()


def two_releases(folder: Path) -> None:
    write(folder, "32m")


def other_header(folder: Path) -> None:
    write(folder, "32m")
    (folder / "ratings.dat").unlink()
    (folder / "ratings.csv").write_text("user,movie\n1,2\n")


def no_ratings(folder: Path) -> None:
    (folder / "ratings.dat").unlink()


def two_places(folder: Path) -> None:
    write_pictures(folder / "posters", ["1.jpg"])
    write_pictures(folder / "images", ["1.jpg"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_films, "has ratings.dat but no movies.dat"),
        (no_ratings, "has none of u.data, ratings.dat, ratings.csv"),
        (two_releases, "has both ratings.dat and ratings.csv"),
        (other_header, "its first line is 'user,movie'"),
        (two_places, "has pictures in both images and posters"),
    ],
)
def test_a_folder_that_is_no_release_is_one_line(spoil, message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "ml", "1m")
    spoil(folder)
    with pytest.raises(InputError, match=message) as caught:
        tables(MovieLens(folder).read())
    assert "\n" not in str(caught.value)
