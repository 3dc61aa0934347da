"""What the documentation shows is run as it stands: each page's commands, Python and TOML, from top to bottom.

A block below the comment `<!-- only parsed in tests: why -->` costs too much to run. Its commands are parsed, so that
their verbs, options and values are right, and experiments are planned (`--plan`). Files that the pages take as given,
such as a folder of raw data, are written by `write_given`.
"""

import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import raw_amazon
import typer
from conftest import tiny_tables, write_pictures
from program import Call

from vlm2rec.cli.verbs import app

UsageError = typer.BadParameter.__base__ or Exception
ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
CHECKED = ("sh", "python", "toml")
UNCHECKED = ("text",)
PARSED = re.compile(r"^<!-- only parsed in tests: \S.*-->$")
TOML_NAME = re.compile(r"# ([\w-]+\.toml)\b")

SMALL = """
preset = "small"
seed = 0
[data]
path = "data/mine"
[backbone]
path = "nano"
[training]
users = 16
epochs = 1
batch_size = 8
[monitor]
probes = 2
users = 16
[evaluation]
validation_users = 16
"""
"""What a reader who has little time writes into the file that `vlm2rec init` made."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page and line, its language, its code, and whether it is run or only parsed."""

    where: str
    language: str
    code: str
    run: bool


def blocks_of(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").splitlines()
    fences = [number for number, line in enumerate(lines) if line.startswith("```")]
    for start, end in zip(fences[::2], fences[1::2], strict=True):
        run = start == 0 or not PARSED.match(lines[start - 1])
        yield Block(f"{page.name}:{start + 2}", lines[start][3:], "\n".join(lines[start + 1 : end]), run)


def commands_of(code: str) -> Iterator[list[str]]:
    """The commands of a shell block in words, without comments."""
    for line in code.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def parse_call(arguments: list[str]) -> None:
    """Check the verb, options and values of a call of the program. Raises UsageError."""
    command: Any = typer.main.get_command(app)  # of the click that typer brings, in whatever package
    context = None
    while hasattr(command, "commands"):
        context = command.make_context(command.name, arguments[:1], parent=context, resilient_parsing=True)
        context.resilient_parsing = False  # so that an unknown verb is refused
        _, command, arguments = command.resolve_command(context, arguments)
    command.make_context(command.name, arguments, parent=context)


def check_other_program(words: list[str]) -> None:
    """Check what is not run: targets of make, extras of pip, options of benchmarks, calls through accelerate."""
    match words:
        case ["make", *targets]:
            known = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(targets) <= set(known), f"the Makefile has no target {targets}"
        case ["pip", "install", *packages]:
            extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
            for named in re.findall(r"\[(.*?)\]", " ".join(packages)):
                assert set(named.split(",")) <= set(extras), f"there is no extra {named}"
        case ["accelerate", "launch", *rest]:
            parse_call(rest[rest.index("vlm2rec") + 1 :])
        case ["python", script, *options]:
            path = ROOT / script
            sources = [path] if path.is_file() else sorted(path.glob("*.py"))
            declared = "\n".join(source.read_text(encoding="utf-8") for source in sources)
            for option in (word for word in options if word.startswith("--")):
                assert f'add_argument("{option}"' in declared, f"{script} has no {option}"
        case _:
            pytest.fail(f"nothing here can check `{shlex.join(words)}`")


def write_given() -> None:
    """Write what the pages take as given into the working directory: raw data, somebody's embeddings."""
    items, log = tiny_tables()
    log = log.with_columns(timestamp=1_700_000_000 + 3600 * pl.col("timestamp"))
    write_pictures(Path("my-folder/images"), items["image"].to_list())
    items.write_parquet("my-folder/items.parquet")
    log.write_parquet("my-folder/interactions.parquet")

    Path("shop-export").mkdir()  # the same shop, with other names and dates, and addresses in place of pictures
    address = pl.format("https://shop.example/{}", "image")
    items.select(sku="item_id", product_name="title", picture_address=address).write_csv("shop-export/items.csv")
    moment = pl.from_epoch("timestamp", time_unit="s").dt.strftime("%d.%m.%Y %H:%M")
    bought = log.select(customer="user_id", sku="item_id", ordered_at=moment, rating=pl.lit(5))
    bought.write_csv("shop-export/interactions.csv")

    catalogue, reviews = raw_amazon.tables(users=30, items=12)
    Path("raw").mkdir()
    raw_amazon.write_raw(Path("raw/beauty"), "2014", catalogue, reviews)
    write_pictures(Path("raw/beauty/images"), [f"{name}.jpg" for name in catalogue["item_id"]])

    rng = np.random.default_rng(0)
    for name in ("text", "image"):
        np.save(f"{name}.npy", rng.standard_normal((items.height, 16)).astype(np.float32))
    numbers = {name: number for number, name in enumerate(items["item_id"])}
    log.with_columns(pl.col("item_id").replace_strict(numbers)).write_parquet("log.parquet")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_names_its_language(page: Path) -> None:
    """A block without one would be passed over in silence."""
    assert {block.language for block in blocks_of(page)} <= {*CHECKED, *UNCHECKED}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page: Path, call: Call) -> None:
    write_given()
    names: dict[str, object] = {}
    for block in blocks_of(page):
        match block.language:
            case "toml":
                tomllib.loads(block.code)
                if named := TOML_NAME.match(block.code):
                    Path(named[1]).write_text(block.code, encoding="utf-8")
            case "python":
                code = compile(block.code, block.where, "exec")
                if block.run:
                    exec(code, names)
            case "sh":
                for words in commands_of(block.code):
                    run_command(words, block, call)


def run_command(words: list[str], block: Block, call: Call) -> None:
    """Run a command of a page, or parse it where it is another program's or its block is only parsed."""
    if words[0] != "vlm2rec":
        return check_other_program(words)
    parse_call(words[1:])
    planned = words[1:3] == ["experiment", "run"] and "--plan" not in words
    if not block.run and not planned:
        return None
    said = call(*words[1:], *(["--plan"] if not block.run else []))
    assert said.status == 0, f"{block.where}: {shlex.join(words)}\n{said.err}"
    if words[1] == "init":
        Path(words[2]).write_text(SMALL, encoding="utf-8")
    return None


@pytest.mark.parametrize(
    "call_", ["runn c.toml", "run", "run c.toml --sed 1", "data prepare tape x --out y", "compare"]
)
def test_a_wrong_call_does_not_parse(call_: str) -> None:
    with pytest.raises(UsageError):
        parse_call(call_.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_calls_inside_the_text_exist(page: Path) -> None:
    """`vlm2rec verb --option` in a sentence: the verb and the options are there; arguments may be placeholders."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for found in re.findall(r"`vlm2rec ([^`]+)`", text):
        command: Any = typer.main.get_command(app)
        words = found.split()
        while words and words[0].isalpha() and hasattr(command, "commands"):
            assert words[0] in command.commands, f"{page.name}: there is no `vlm2rec {found}`"
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word.partition("=")[0] for word in words if word.startswith("--")} <= options, f"{page.name}: {found}"
