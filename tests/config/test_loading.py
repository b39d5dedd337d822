"""Settings of plan and extract: composition from conf/, checks and messages."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline.config import (
    Config,
    DatasetConfig,
    EngineConfig,
    ExtractConfig,
    ModelConfig,
    PlanConfig,
    RunConfig,
    config_folder,
    load_config,
)
from pipeline.config.loading import _compose_groups
from pipeline.errors import ConfigError

GROUPS = {"dataset": DatasetConfig, "model": ModelConfig, "engine": EngineConfig}
SECTIONS = {"extract": ExtractConfig, "plan": PlanConfig, "run": RunConfig}
OPTIONS = [
    (group, path.stem) for group in GROUPS for path in sorted((config_folder() / group).iterdir())
]


def keys(path: Path) -> dict:
    """Content of a YAML file."""
    return OmegaConf.to_container(OmegaConf.load(path))


def fields(kind: type) -> set[str]:
    """Names of a dataclass's fields."""
    return {item.name for item in dataclasses.fields(kind)}


def test_the_defaults() -> None:
    """A command without overrides gets the defaults of the dataclasses."""
    config = load_config()
    assert config.dataset == DatasetConfig("audiofolder")
    assert config.model == ModelConfig("hubert_base")
    assert config.engine.kind == "ray"
    assert config.store is None
    assert (config.extract, config.plan, config.run) == (ExtractConfig(), PlanConfig(), RunConfig())


@pytest.mark.parametrize(("group", "name"), OPTIONS)
def test_every_option_loads(group: str, name: str) -> None:
    """Each YAML file in conf/ fits its dataclass, and is chosen by its name."""
    config = load_config([f"{group}={name}"])
    stated = keys(config_folder() / group / f"{name}.yaml")
    for key, value in stated.items():
        found = getattr(getattr(config, group), key)
        assert found == (tuple(value) if isinstance(value, list) else value)


def test_options_go_together() -> None:
    """Any dataset combines with any engine."""
    names = {group: [name for g, name in OPTIONS if g == group] for group in GROUPS}
    for dataset, engine in product(names["dataset"], names["engine"]):
        config = load_config([f"engine={engine}", f"dataset={dataset}", "model=tiny"])
        assert (config.engine.kind, config.model.name) == (engine, "tiny")


@pytest.mark.parametrize("group", GROUPS)
def test_groups_and_dataclasses_agree(group: str) -> None:
    """Every field is set by some option, and no option sets an unknown field."""
    files = [keys(config_folder() / group / f"{name}.yaml") for g, name in OPTIONS if g == group]
    assert set().union(*files) == fields(GROUPS[group])


def test_sections_and_dataclasses_agree() -> None:
    """config.yaml spells out every other setting, with the default of its dataclass."""
    stated = keys(config_folder() / "config.yaml")
    assert stated.keys() - {"defaults", "hydra"} == fields(Config) - GROUPS.keys()
    for section, kind in SECTIONS.items():
        defaults = json.dumps(dataclasses.asdict(kind()))  # YAML has lists for tuples
        assert stated[section] == json.loads(defaults)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataste=hub", "unknown setting dataste; did you mean dataset"),
        ("dataset=hubb", "no dataset is called 'hubb'; did you mean hub?"),
        ("dataset=/", "no dataset is called '/'; a folder or file is dataset.path=/"),
        ("model=facebook/hubert-base-ls960", "model=hf model.name=facebook/hubert-base-ls960"),
        ("model=hubert_bas", "no model is called 'hubert_bas'; did you mean hubert_base"),
        ("model=HuBERT-Base", "did you mean hubert_base or hubert_large? A checkpoint of Hugging"),
        ("model=zipformer", "`strata models` lists all. A checkpoint of Hugging Face is model=hf"),
        ("model=whisper", "whisper is a family of models, and one of them is named by its id or"),
        ("model=whisper-large-v3", "folder: model=hf model.name=openai/whisper-base. All are in"),
        ("model=wav2vec2-bert", "'wav2vec2-bert'; wav2vec2_bert is a family of models"),
        ("model=hubert", "did you mean hubert_base or hubert_large? hubert is a family of models"),
        ("model=a/b", "a hub id or a folder of a checkpoint is model=hf model.name=a/b"),
        ("model=wavlm.pt", "of fairseq, unilm or s3prl is model=checkpoint model.name=wavlm.pt"),
        ("engine=spark", "no engine is called 'spark'; there are inline, ray"),
        ("dataset.pat=x", "unknown setting dataset.pat; did you mean dataset.path"),
        ("model.wieghts=random", "unknown setting model.wieghts; did you mean model.weights"),
        ("extract.layer=all", "unknown setting extract.layer; did you mean extract.layers"),
        ("plan.frames_per_units=512", "did you mean plan.frames_per_unit"),
        ("run.max_quarantine=0", "did you mean run.max_quarantined"),
        ("+new=1", "unknown setting new"),
        ("hydra.run.dir=x", "unknown setting hydra.run.dir"),
        ("dataset.name=x", "it is a setting of dataset=hub, not of dataset=audiofolder"),
        (
            "model.language=fra",
            "model.language; it is a setting of model=hf, not of model=hubert_base",
        ),
        ("model.allow_pickle=true", "it is a setting of model=hf, not of model=hubert_base"),
        ("store", "'store' is not a setting; write KEY=VALUE"),
        ("=x", "'=x' is not a setting"),
        ("", "'' is not a setting"),
        ("engine.workers=two", "engine.workers is 'two'; expected a whole number or null"),
        ("engine.workers=1.5", "engine.workers is 1.5; expected a whole number or null"),
        ("engine.workers=true", "engine.workers is True; expected a whole number or null"),
        ("engine.workers=0", "engine.workers is 0; expected at least 1"),
        ("engine.threads=-1", "engine.threads is -1; expected at least 1"),
        ("plan.frames_per_unit=0", "plan.frames_per_unit is 0; expected at least 1"),
        ("plan.frames_per_unit=1e5", "plan.frames_per_unit is 100000.0; expected a whole number"),
        ("dataset.limit=0", "dataset.limit is 0; expected at least 1"),
        ("dataset.columns=speaker", "dataset.columns is 'speaker'; expected a list of names"),
        ("dataset.columns={a: 1}", "expected a list of names ([a,b]) or null"),
        (
            "extract.layers=[1,true]",
            "extract.layers is [1, True]; expected text or a list of numbers",
        ),
        ("extract.max_batch_s=0", "extract.max_batch_s is 0.0; expected seconds, more than 0"),
        ("extract.max_batch_s=nan", "expected seconds, more than 0"),
        ("extract.max_batch_s=fast", "extract.max_batch_s is 'fast'; expected a number or null"),
        ("run.max_quarantined=2", "run.max_quarantined is 2.0; expected a share from 0 to 1"),
        ("run.max_quarantined=nan", "expected a share from 0 to 1"),
        ("run.max_attempts=0", "run.max_attempts is 0; expected at least 1"),
        ("run.max_attempts=null", "run.max_attempts is None; expected a whole number"),
        ("model.weights=null", "model.weights is None; expected text"),
        ("model.seed=x", "model.seed is 'x'; expected a whole number"),
        ("store=", "store is empty; write store=null to leave it unset"),
        ("dataset.path=", "dataset.path is empty"),
        ("extract.layers=[1,2", "[1,2"),
        ("extract.layers=${nothing}", "nothing"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, message: str) -> None:
    """The message has the key, the value, and the nearest correct one or what was expected."""
    with pytest.raises(ConfigError) as caught:
        load_config([override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


TEXTS = [
    "my store",
    " leading and trailing ",
    "a=b",
    "split=train/x",
    "a,b",
    "(1)",
    "[a]",
    "{a: 1}",
    "it's",
    'say "hi"',
    "'90s music/x",
    "a'",
    "ünïcödé/日本語",
    "$HOME",
    "${HOME}",
    "${store}",
    "\\${x}",
    "C:\\data\\",
    "a\\'b",
    "a#b",
    "a: b",
    "~/x",
    "*?",
    "50%",
    "true",
    "off",
    "0012",
    "1e3",
    "2024",
    "nan",
    "NULL",
    "-",
    "a\tb",
]


@pytest.mark.parametrize("value", TEXTS)
def test_text_is_taken_literally(value: str) -> None:
    """Paths, columns and splits need no quoting beyond the shell's."""
    keys = ("store", "dataset.path", "dataset.id_column", "dataset.split")
    keys = (*keys, "model.weights", "engine.address")
    config = load_config([f"{key}={value}" for key in keys])
    dataset = config.dataset
    assert {config.store, dataset.path, dataset.id_column, dataset.split} == {value}
    assert {config.model.weights, config.engine.address} == {value}


@settings(max_examples=25)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@pytest.mark.slow
def test_any_path_survives(value: str) -> None:
    """Any text is kept; only null and quotes around the whole value have a meaning."""
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    if value != "null" and not quoted:
        assert load_config([f"store={value}"]).store == value


@pytest.mark.parametrize(
    ("root", "choices"),
    [
        ("config", {}),
        ("config", {"dataset": "hub", "model": "tiny", "engine": "inline"}),
        ("sweep", {"task": "asr"}),
    ],
)
def test_choices_of_options_are_composed_as_by_hydra(root: str, choices: dict[str, str]) -> None:
    """Which is not called for them alone."""
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        expected = compose(root, [f"{group}={name}" for group, name in choices.items()])
    found = _compose_groups(config_folder(), root, choices, [])
    assert found == expected
    assert OmegaConf.is_struct(found) == OmegaConf.is_struct(expected)


@pytest.mark.parametrize(
    ("value", "expected"), [("null", None), ("'a b'", "a b"), ('"a=b"', "a=b"), ("''x''", "'x'")]
)
def test_null_and_quotes(value: str, expected: str | None) -> None:
    """Null leaves a setting unset; quotes around the whole value are removed."""
    assert load_config([f"store={value}"]).store == expected


def test_lists_and_numbers_follow_hydra() -> None:
    """Values have the types of the dataclasses."""
    config = load_config(
        [
            "extract.layers=[1,6,12]",
            "extract.max_batch_s=30",
            "dataset.columns=[speaker, 'a b', 3]",
            "dataset.limit=null",
            "engine.workers=2",
            "run.max_quarantined=1",
        ]
    )
    assert config.extract.layers == (1, 6, 12)
    assert config.dataset.columns == ("speaker", "a b", "3")
    assert config.run.max_quarantined == 1.0
    assert type(config.extract.max_batch_s) is float
    assert (config.engine.workers, config.dataset.limit) == (2, None)
    assert load_config(["dataset.columns=[]"]).dataset.columns == ()
    assert load_config(["extract.layers=superb"]).extract.layers == "superb"


def test_the_last_override_counts() -> None:
    """Overrides win over the settings of an option, whatever their order."""
    config = load_config(["store=a", "dataset.path=p", "dataset=disk", "store=b"])
    assert (config.store, config.dataset.kind, config.dataset.path) == ("b", "disk", "p")
    repeated = ["engine.workers=1", "engine=inline", "engine.workers=2", "engine.workers=1"]
    assert load_config(repeated).engine.workers == 1


def test_braces_that_the_shell_has_expanded_are_refused() -> None:
    """Otherwise the last of the paths would be the whole dataset."""
    paths = [f"dataset.path=x-{i}.tar" for i in range(3)]
    with pytest.raises(ConfigError, match="put quotes around the setting") as error:
        load_config(["dataset=webdataset", *paths])
    assert "dataset.path=x-0.tar is followed by dataset.path=x-1.tar" in str(error.value)
    assert load_config([paths[0], "dataset=webdataset", paths[1]]).dataset.path == "x-1.tar"


def test_a_configuration_cannot_be_changed() -> None:
    """A configuration is frozen and hashable."""
    config = load_config(["dataset.columns=[a]"])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.store = "x"
    assert hash(config) == hash(load_config(["dataset.columns=[a]"]))


@pytest.mark.parametrize(
    ("override", "columns"),
    [
        ("dataset.columns=[日本]", ("日本",)),
        ("dataset.columns=[größe, a b,c(d),e=f]", ("größe", "a b", "c(d)", "e=f")),
        ('dataset.columns=["日本", x]', ("日本", "x")),
        ('dataset.columns=["a,b", c]', ("a,b", "c")),
        ("dataset.columns=['a,b']", ("a,b",)),
        ("dataset.columns=[a\\b;c]", ("a\\b;c",)),
    ],
)
def test_names_may_have_any_characters(override, columns):
    """In lists, with quotes or without; Hydra's grammar alone takes few characters."""
    assert load_config([override]).dataset.columns == columns


def test_names_of_a_mapping_may_have_any_characters():
    """Also those that Hydra's grammar does not take."""
    for text, names in (("{größe: text}", ["größe"]), ("{a: text,b:int}", ["a", "b"])):
        assert list(load_config([f"dataset.types={text}"]).dataset.types) == names


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.columns=[a,l'x]", r"is \"\[a,l'x\]\".* '(dataset.columns=\[\"a,b\",c\])'"),
        ('dataset.columns=["日本]', r"cannot be read; .* '(dataset.columns=\[\"a,b\",c\])'"),
        ("dataset.columns=日本", r"is '日本'; expected a list of names \(\[a,b\]\)"),
        ("dataset.columns=a,b", r"is 'a,b'; expected a list of names \(\[a,b\]\)"),
        ("extract.layers=[0,", r"is '\[0,', which .* numbers in brackets, such as (\S+)$"),
        ("dataset.limit=ä", r"dataset.limit is 'ä'; expected a whole number"),
        ("dataset.limit=1,2", r"dataset.limit is '1,2'; expected a whole number"),
        ("dataset.types={a", r"cannot be read; .* such as '(dataset.types=.*)'$"),
        ("dataset.columns=[${x}]", r"'dataset.columns=\[\${x}\]' takes a value with \${...}"),
    ],
)
def test_values_that_cannot_be_read_are_refused_with_a_spelling_that_works(override, message):
    """Without Hydra's own words; the spelling in the message is read as it is."""
    with pytest.raises(ConfigError, match=message) as caught:
        load_config([override])
    assert "hydra" not in str(caught.value).casefold()
    assert "Exception" not in str(caught.value)
    found = re.search(message, str(caught.value))
    for spelling in found.groups():
        load_config([spelling])
