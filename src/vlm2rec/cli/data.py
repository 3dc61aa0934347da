"""`vlm2rec data …`: raw data to a data set, and what there is to know of one."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from vlm2rec.cli.words import lines
from vlm2rec.errors import InputError

app = typer.Typer(help="Prepare and inspect data sets.", no_args_is_help=True)


@app.command()
def prepare(
    source: Annotated[Literal["local", "shop"], typer.Argument(help="local: tables and pictures in a folder.")],
    path: Annotated[Path | None, typer.Argument(help="Folder of the raw data (not for shop).")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = ...,  # type: ignore[assignment]
    require: Annotated[
        str, typer.Option(help="What an item must have: title,image, title, image, or any (either).")
    ] = "title,image",
    k_core: Annotated[int, typer.Option(min=0, help="Events that every user and item must have.")] = 5,
    picture_size: Annotated[int, typer.Option(min=16, help="Stored pictures fit this side, in pixels.")] = 224,
    picture_fit: Annotated[
        Literal["squash", "letterbox", "aspect"], typer.Option(help="How a picture meets that size.")
    ] = "squash",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shop.")] = 0,
) -> None:
    """Raw tables and pictures to a data set: clean, drop what lacks parts, k-core, pack the pictures."""
    from vlm2rec.data.prepare import picture_bar
    from vlm2rec.data.prepare import prepare as prepare_data
    from vlm2rec.data.sources import Source
    from vlm2rec.data.sources.local import Local
    from vlm2rec.data.sources.shop import ShopWorld

    chosen: Source
    if source == "shop":
        chosen = ShopWorld(seed=seed)
    elif path is None:
        raise InputError(f"data prepare {source}: give the folder that holds the raw data")
    else:
        chosen = Local(path)
    with picture_bar() as progress:
        made = prepare_data(
            chosen,
            out,
            require=tuple(part.strip() for part in require.split(",") if part.strip()),
            k_core=k_core,
            picture_size=picture_size,
            picture_fit=picture_fit,
            progress=progress,
            notice=lambda line: print(line, file=sys.stderr),
        )
    print(f"{made.n_users:,} users, {made.n_items:,} items, {made.n_interactions:,} interactions")
    print(out)


@app.command()
def describe(
    folder: Annotated[Path, typer.Argument(help="A prepared data set.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Counts, lengths, ties, popularity, titles and pictures that are missing, broken or double."""
    from vlm2rec.data.dataset import Dataset
    from vlm2rec.data.describe import describe as describe_data

    found = describe_data(Dataset.load(folder))
    print(json.dumps(found, indent=1) if as_json else "\n".join(lines(found)))
