"""`vlm2rec data …`: raw data to a data set, and what there is to know of one."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlm2rec.cli.words import help_without_verb, lines, listed

app = typer.Typer(
    help="Prepare and inspect data sets.",
    callback=help_without_verb,
    invoke_without_command=True,
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Argument(help="A prepared data set.")]
AsJson = Annotated[bool, typer.Option("--json", help="As JSON.")]


@app.command()
def prepare(
    source: Annotated[
        Literal["local", "amazon-2014", "amazon-2018", "amazon-2023", "movielens", "recbole", "shop"],
        typer.Argument(help="local: tables and pictures in a folder of one's own."),
    ],
    path: Annotated[Path | None, typer.Argument(help="Folder of the raw files (not for shop).")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = ...,  # type: ignore[assignment]
    config: Annotated[Path | None, typer.Option(help="TOML file with any of these options; they go before it.")] = None,
    require: Annotated[
        str | None, typer.Option(help="What an item must have: title,image (default), title, image, or any (either).")
    ] = None,
    k_core: Annotated[int | None, typer.Option(min=0, help="Events of every user and item; by default 5.")] = None,
    min_rating: Annotated[float | None, typer.Option(help="Leave out events rated lower.")] = None,
    users: Annotated[int | None, typer.Option(min=1, help="Draw so many users, before anything is dropped.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of that draw, and of the shop.")] = None,
    duplicates: Annotated[
        Literal["drop", "keep"] | None,
        typer.Option(help="Rows that are there twice (user, item and time): leave the second out (drop), or keep it."),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Which of several in the folder (Amazon).")] = None,
    columns: Annotated[
        str | None, typer.Option(help="What columns are called: user_id=uid,items.item_id=sku,… (local, recbole).")
    ] = None,
    time_format: Annotated[
        str | None, typer.Option(help="How times are written, as in %d/%m/%Y (local, recbole).")
    ] = None,
    time_unit: Annotated[
        Literal["s", "ms", "us", "ns"] | None,
        typer.Option(help="What times count (local, recbole); else seen from their size."),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder, .zip or .tar of the pictures, if not images/ among the raw files.")
    ] = None,
    download_images: Annotated[
        bool | None, typer.Option("--download-images", help="Fetch pictures that are missing and have an address.")
    ] = None,
    per_host: Annotated[int | None, typer.Option(min=1, help="Requests to one host at a time; by default 8.")] = None,
    allow_private: Annotated[
        bool | None, typer.Option("--allow-private", help="Fetch from private networks and this machine too.")
    ] = None,
    picture_size: Annotated[int | None, typer.Option(min=16, help="Stored pictures fit this side; 224 pixels.")] = None,
    picture_fit: Annotated[
        Literal["squash", "letterbox", "aspect"] | None, typer.Option(help="How a picture meets that size: squash.")
    ] = None,
    drop_placeholders: Annotated[
        bool | None, typer.Option("--drop-placeholders", help='Take pictures that say "no image" as missing.')
    ] = None,
    bad_lines: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of a file's lines that may be unreadable; .01.")
    ] = None,
) -> None:
    """Raw tables and pictures to a data set: clean, drop what lacks parts, k-core, pack the pictures."""
    from vlm2rec.cli.preparation import asked, pairs
    from vlm2rec.data.describe import leak_warning
    from vlm2rec.data.prepare import bar
    from vlm2rec.data.prepare import prepare as prepare_data
    from vlm2rec.progress import notice

    options = asked(
        config,
        {
            "require": None if require is None else listed(require),
            "k_core": k_core,
            "min_rating": min_rating,
            "users": users,
            "seed": seed,
            "duplicates": duplicates,
            "domain": domain,
            "columns": None if columns is None else pairs(columns),
            "time_format": time_format,
            "time_unit": time_unit,
            "images": images,
            "download_images": download_images,
            "picture_size": picture_size,
            "picture_fit": picture_fit,
            "drop_placeholders": drop_placeholders,
            "bad_lines": bad_lines,
            "fetching": {
                name: value for name, value in (("per_host", per_host), ("private", allow_private)) if value is not None
            },
        },
    )
    with bar() as progress:
        made = prepare_data(
            options.source(source, path),
            out,
            require=options.require,
            k_core=options.k_core,
            min_rating=options.min_rating,
            users=options.users,
            seed=options.seed,
            duplicates=options.duplicates,
            picture_size=options.picture_size,
            picture_fit=options.picture_fit,
            drop_placeholders=options.drop_placeholders,
            pictures=options.images,
            fetching=options.manners(),
            bad_lines=options.bad_lines,
            progress=progress,
            notice=notice,
        )
    if made.manifest["time_unit"] is None:
        said = "times are not what clocks count since 1970, so only their order is known; --time-unit says otherwise"
        print(f"{out}: {said}", file=sys.stderr)
    if warning := leak_warning(made):
        print(warning, file=sys.stderr)
    print(f"{made.n_users:,} users, {made.n_items:,} items, {made.n_interactions:,} interactions")
    print(out)


@app.command()
def describe(folder: Folder, as_json: AsJson = False) -> None:
    """Counts, lengths, ties, leaks, popularity, titles and pictures that are missing, broken or double."""
    from vlm2rec.data.dataset import Dataset
    from vlm2rec.data.describe import describe as describe_data
    from vlm2rec.data.describe import leak_warning, target_warnings
    from vlm2rec.data.preparing.losses import lines as losses_said

    dataset = Dataset.load(folder)
    found = describe_data(dataset)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        losses = found.pop("losses")
        print("\n".join([*lines(found), *losses_said(losses or {})]))
    for warning in filter(None, [*target_warnings(dataset), leak_warning(dataset)]):
        print(warning, file=sys.stderr)


@app.command()
def pictures(
    folder: Folder,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the lists (Parquet) and an HTML page to look at.")
    ] = None,
) -> None:
    """Pictures that look alike, and placeholders such as "no image available"."""
    from vlm2rec.data.dataset import Dataset
    from vlm2rec.data.pictures.lookalikes import look_alike
    from vlm2rec.data.pictures.sheet import write_sheet

    dataset = Dataset.load(folder)
    found = look_alike(dataset)
    print(json.dumps(found.counts, indent=1) if as_json else "\n".join(found.lines()))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        found.groups.write_parquet(out / "groups.parquet")
        found.placeholders.write_parquet(out / "placeholders.parquet")
        write_sheet(found, dataset, out / "pictures.html")
        print(out / "pictures.html")


@app.command()
def check(
    folder: Folder, other: Annotated[Path | None, typer.Argument(help="Another one, to compare with.")] = None
) -> None:
    """Is a data set as it was written (status 2 where not), and the same as another (status 1 where not)?"""
    from vlm2rec.data.dataset import Dataset
    from vlm2rec.data.identity import check as check_data
    from vlm2rec.data.identity import differences, origin_differences

    dataset = Dataset.load(folder)
    check_data(dataset)
    print(f"{folder}: as it was written, fingerprint {dataset.fingerprint}")
    if other is None:
        return
    second = Dataset.load(other)
    check_data(second)
    found = differences(dataset, second)
    other_times = found and second.fingerprint == dataset.fingerprint
    said = "the same data but for its times" if other_times else "other data" if found else "the same data"
    print(f"{other}: {said}, fingerprint {second.fingerprint}")
    print("\n".join(["differs:", *found] if found else []), end="\n" if found else "")
    if made := origin_differences(dataset, second):
        print("\n".join(["made otherwise:", *made]))
    if found:
        raise typer.Exit(1)


@app.command()
def pair(
    first: Annotated[Path, typer.Argument(help="A prepared data set.")],
    second: Annotated[Path, typer.Argument(help="One of another domain, with some of the same users.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")] = ...,  # type: ignore[assignment]
    users: Annotated[Literal["both", "any"], typer.Option(help="Users who are in both, or all.")] = "both",
) -> None:
    """Two domains as one data set: the same people's events in order of time, each item with its domain."""
    from vlm2rec.data.dataset import Dataset
    from vlm2rec.data.pairs import pair as pair_data
    from vlm2rec.progress import notice

    made = pair_data(Dataset.load(first), Dataset.load(second), out, users=users, notice=notice)
    print(f"{made.n_users:,} users, {made.n_items:,} items, {made.n_interactions:,} interactions")
    print(f"domains: {', '.join(made.items['domain'].unique(maintain_order=True))}")
    print(out)


@app.command()
def export(
    folder: Folder,
    to: Annotated[Literal["recbole", "parquet", "csv", "jsonl"], typer.Option(help="Which format.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    pictures: Annotated[bool, typer.Option("--pictures", help="The pictures too, as they are stored (PNG).")] = False,
) -> None:
    """A data set as files that RecBole and others read.

    `prepare` makes the same of them again, with the pictures that the data set was made from. With --pictures the
    pixels are the same and the fingerprint, which is of pictures' files, is another.
    """
    from vlm2rec.data.dataset import Dataset
    from vlm2rec.data.export import export as export_data

    export_data(Dataset.load(folder), to, out, pictures=pictures)
    print(out)
