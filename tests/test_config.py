"""Reading, checking and writing a configuration."""

import tomllib
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import vlm2rec
from vlm2rec.config import PRESETS, Config, config_toml, load_config, parse_config, parse_override
from vlm2rec.config.methods import METHODS
from vlm2rec.config.sections import SPLITS
from vlm2rec.errors import InputError

DATA = {"data": {"path": "somewhere"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(raw: dict[str, Any]) -> str:
    """The message for a wrong config: always one line, always naming where it came from."""
    with pytest.raises(InputError) as caught:
        parse_config({**DATA, **raw}, origin="run.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run.toml: ")
    return message


# ---------------------------------------------------------------- presets

CONTRACT = {
    "paper": (0.1, 0.1, 0.5, 1.0, 1.0, 1e-5, 8, 3, "last"),
    "small": (0.1, 1.0, 0.1, 5.0, 2.0, 2e-4, 64, 3, "all"),
}


def numbers(config: Config) -> tuple[Any, ...]:
    o, t = config.objective, config.training
    return (o.temperature, o.crtr_temperature, o.weight, o.alpha, o.beta, t.lr, t.batch_size, t.epochs, t.samples)


@pytest.mark.parametrize("preset", list(CONTRACT))
def test_presets_are_those_of_the_contract(preset: str) -> None:
    assert numbers(parse_config({**DATA, "preset": preset})) == CONTRACT[preset]
    assert set(PRESETS) == set(CONTRACT)


def test_the_paper_is_the_default() -> None:
    config = parse_config(DATA)
    assert numbers(config) == CONTRACT["paper"]
    assert (config.method.kind, config.prompt.fusion, config.seed) == ("vlm2rec", "external", 0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.backbone.lora.dropout) == (16, 32, 0.2)
    assert config.data.max_history == 10


def test_a_given_value_wins_over_the_preset() -> None:
    config = parse_config({**DATA, "preset": "small", "training": {"lr": 0.5}, "objective": {"beta": 0.25}})
    assert (config.training.lr, config.objective.beta) == (0.5, 0.25)
    assert (config.training.batch_size, config.objective.alpha) == (64, 5.0)


def test_reading_a_config_leaves_the_presets_alone() -> None:
    before = repr(PRESETS)
    parse_config({**DATA, "preset": "small", "training": {"lr": 0.5}})
    assert repr(PRESETS) == before


# ---------------------------------------------------------------- files and overrides


def test_overrides_lie_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'seed = 1\n[data]\npath = "here"\n[training]\nepochs = 7\nlr = 1e-3\n')
    config = load_config(
        path,
        [
            "seed=4",
            "method.kind=sft",
            "preset=small",
            "training.epochs=2",
            "backbone.lora.targets=attention",
            "training.users=64",
        ],
    )
    assert (config.seed, config.method.kind, config.training.epochs, config.training.users) == (4, "sft", 2, 64)
    assert config.training.lr == 1e-3  # the file still wins over the preset
    assert config.training.batch_size == 64
    assert config.backbone.lora.targets == "attention"
    assert config.data.path == Path("here")


def test_the_last_override_of_a_key_wins(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, '[data]\npath = "d"\n'), ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("seed=3", ["seed"], 3),
        ("training.lr=1e-4", ["training", "lr"], 1e-4),
        ("method.kind=sft", ["method", "kind"], "sft"),
        ('method.kind="sft"', ["method", "kind"], "sft"),
        ("backbone.cache_vision=false", ["backbone", "cache_vision"], False),
        ("training.users=none", ["training", "users"], None),
        ("prompt.opening=a=b", ["prompt", "opening"], "a=b"),
        ("data.path=/a b/c.d", ["data", "path"], "/a b/c.d"),
        (" seed = 3 ", ["seed"], 3),
        ("prompt.closing=", ["prompt", "closing"], ""),
    ],
)
def test_parse_override(text: str, path: list[str], value: Any) -> None:
    assert parse_override(text) == (path, value)


@pytest.mark.parametrize("text", ["seed", "=3", "training..lr=1", ".lr=1", ""])
def test_a_malformed_override_is_explained(text: str) -> None:
    with pytest.raises(InputError, match=r"section\.key=value"):
        parse_override(text)


def test_an_override_through_a_value_is_explained(tmp_path: Path) -> None:
    path = write(tmp_path, 'seed = 1\n[data]\npath = "d"\n')
    with pytest.raises(InputError, match="seed is a value, not a section"):
        load_config(path, ["seed.deep=2"])


def test_unreadable_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml: no such config file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read"):
        load_config(tmp_path / "bytes.toml")
    with pytest.raises(InputError, match=r"run\.toml: not valid TOML: .*line 1") as caught:
        load_config(write(tmp_path, "seed = = 3\n"))
    assert "\n" not in str(caught.value)


def test_a_config_must_say_where_its_data_are(tmp_path: Path) -> None:
    for text in ("", "[data]\n"):
        with pytest.raises(InputError, match=r"data\.path is missing.*--set data\.path="):
            load_config(write(tmp_path, text))


# ---------------------------------------------------------------- wrong keys and values


@pytest.mark.parametrize(
    ("raw", "unknown", "hint"),
    [
        ({"sede": 1}, "unknown key sede", "did you mean seed?"),
        ({"trainin": {}}, "unknown key trainin", "did you mean training?"),
        ({"training": {"epoch": 1}}, "unknown key training.epoch", "did you mean training.epochs?"),
        ({"backbone": {"lora": {"rnk": 1}}}, "unknown key backbone.lora.rnk", "did you mean backbone.lora.rank?"),
        ({"objective": {"qqqqq": 1}}, "unknown key objective.qqqqq", "known here: temperature, crtr_temperature"),
        ({"method": {"kind": "sft", "knd": 1}}, "unknown key method.knd", "did you mean method.kind?"),
        ({"method": {"kind": "sfft"}}, "unknown method.kind 'sfft'", "did you mean sft?"),
        ({"method": {"kind": "qqqqq"}}, "unknown method.kind 'qqqqq'", "known: vanilla, sft, vlm2rec, poprec"),
        ({"data": {"splt": 1}}, "unknown key data.splt", "did you mean data.split?"),
        ({"data": {"split": {"kind": "time", "targt": 1}}}, "unknown key data.split.targt", "mean data.split.target?"),
        ({"data": {"path": "x", "split": {"kind": "tme"}}}, "unknown data.split.kind 'tme'", "did you mean time?"),
        (
            {"data": {"split": {"kind": "cold_items", "domain": 1}}},
            "unknown key data.split.domain",
            "known here: kind, v",
        ),
        ({"data": {"split": {"domian": "a"}}}, "unknown key data.split.domian", "did you mean data.split.domain?"),
        ({"data": {"split": {"knd": "time"}}}, "unknown key data.split.knd", "did you mean data.split.kind?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(raw: dict[str, Any], unknown: str, hint: str) -> None:
    message = complaint(raw)
    assert unknown in message
    assert hint in message


@pytest.mark.parametrize("kind", sorted(set(METHODS) - {"clip"}))  # training.clip is a key
def test_a_key_named_like_a_method_is_still_unknown(kind: str) -> None:
    assert f"unknown key {kind};" in complaint({kind: 1})
    assert f"unknown key training.{kind};" in complaint({"training": {kind: 1}})
    assert f"unknown key method.{kind};" in complaint({"method": {"kind": kind, kind: 1}})


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        ({"training": {"lr": -1}}, "training.lr = -1"),
        ({"training": {"lr": float("inf")}}, "training.lr = inf"),
        ({"training": {"lr": float("nan")}}, "training.lr = nan"),
        ({"training": {"lr": "fast"}}, "training.lr = 'fast'"),
        ({"training": {"batch_size": 1}}, "training.batch_size = 1"),
        ({"training": {"samples": "some"}}, "training.samples = 'some'"),
        ({"objective": {"temperature": 0}}, "objective.temperature = 0"),
        ({"objective": {"alpha": -0.1}}, "objective.alpha = -0.1"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 1.5}, "seed = 1.5"),
        ({"preset": "large"}, "preset = 'large'"),
        ({"training": 3}, "training = 3"),
        ({"method": "sft"}, "method = 'sft'"),
        ({"method": {}}, "method.kind is missing"),
        ({"data": {"path": "x", "split": "time"}}, "data.split = 'time'"),
        ({"data": {"path": "x", "split": {"kind": "time", "test": 0}}}, "data.split.test = 0"),
        ({"data": {"path": "x", "split": {"kind": "time", "test": "soon"}}}, "data.split.test = 'soon': is no date"),
        ({"data": {"path": "x", "split": {"kind": "time", "test": [1]}}}, "data.split.test = [1]"),
        ({"data": {"path": "x", "split": {"kind": "time", "test": 0.6, "validation": 0.4}}}, "nothing to train on"),
        ({"data": {"path": "x", "split": {"kind": "cold_items", "test": 0.5, "validation": 0.5}}}, "no item to train"),
        ({"prompt": {"opening": "two\nlines", "fusion": "a\nb"}}, "prompt.fusion"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(raw: dict[str, Any], where: str) -> None:
    assert where in complaint(raw)


@pytest.mark.parametrize("prompt", [{"fusion": "internal"}, {"modalities": "text"}, {"modalities": "image"}])
def test_vlm2rec_needs_two_views(prompt: dict[str, str]) -> None:
    assert "prompt.fusion=external" in complaint({"prompt": prompt})
    for kind in ("vanilla", "sft"):
        assert parse_config({**DATA, "prompt": prompt, "method": {"kind": kind}}).method.kind == kind


def test_a_config_does_not_change() -> None:
    config = parse_config(DATA)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.training.lr = 3.0


# ---------------------------------------------------------------- back to TOML


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"preset": "small", "seed": 9, "method": {"kind": "sft"}},
        {"method": {"kind": "poprec"}, "training": {"users": 64, "lr": 3e-7, "micro_batch": 4}},
        {"prompt": {"opening": 'Quotes "and"\nlines, é\n', "closing": "\\ backslash"}},
        {"backbone": {"path": "a folder/b", "image_size": 224, "lora": {"dropout": 0.0}}, "evaluation": {"users": 5}},
        {"data": {"path": "d", "split": {"kind": "leave_one_out", "domain": "books"}}},
        {"data": {"path": "d", "split": {"kind": "time", "validation": 0.2, "test": date(2014, 5, 1)}}},
        {"data": {"path": "d", "split": {"kind": "time", "validation": 1_400_000_000_000_000_001, "target": "first"}}},
        {"data": {"path": "d", "split": {"kind": "cold_items", "items": "newest", "seed": 3}}},
    ],
)
def test_toml_round_trip(raw: dict[str, Any], tmp_path: Path) -> None:
    config = parse_config({**DATA, **raw})
    text = config_toml(config)
    assert load_config(write(tmp_path, text)) == config
    assert config_toml(load_config(tmp_path / "run.toml")) == text


def test_the_template_is_the_defaults() -> None:
    """Also where every line that it has commented out is taken in, but for those of other kinds of split."""
    template = (Path(vlm2rec.__file__).parent / "template.toml").read_text(encoding="utf-8")
    config = parse_config(tomllib.loads(template))
    assert config.data.split == parse_config(DATA).data.split
    lines = template[template.index("[data.split]") : template.index("[method]")].splitlines()[2:]
    for kind, section in SPLITS.items():
        told = [line.removeprefix("# ") for line in lines if line[2:].split(" =")[0] in section.model_fields]
        given = tomllib.loads("\n".join(told))
        assert set(given) == set(section.model_fields) - {"kind"}
        if kind != "leave_one_out":  # whose domain has no default to show
            assert section.model_validate(given) == section()


def test_written_toml_does_not_lean_on_presets() -> None:
    """Every number is spelled out, so a preset that changes later changes no old run."""
    written = tomllib.loads(config_toml(parse_config({**DATA, "preset": "small"})))
    for section, values in PRESETS["small"].items():
        assert values.items() <= written[section].items()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"method": {"kind": "sft"}, "objective": {"contrast": False}}, "which method.kind=sft has not"),
        ({"objective": {"contrast": False, "weight": 0}}, "objective.weight=0 not even it"),
        (
            {"method": {"kind": "sft"}, "objective": {"modality_weight": 1}, "prompt": {"modalities": "text"}},
            "objective.modality_weight=1 asks for two views",
        ),
        (
            {"method": {"kind": "sft"}, "prompt": {"combine": "gated", "fusion": "internal"}},
            "prompt.combine=gated joins",
        ),
        (
            {"method": {"kind": "vanilla"}, "prompt": {"combine": "concat", "modalities": "image"}},
            "needs prompt.fusion",
        ),
    ],
)
def test_what_needs_two_views_or_a_loss_says_so(raw: dict[str, Any], said: str) -> None:
    assert said in complaint(raw)
