"""Settings of an extraction as keywords."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import EngineConfig, compose_config, load_config
from pipeline.errors import ConfigError


def test_every_form_of_a_group_gives_the_same_configuration():
    """Overrides, a mapping with the option's name, and a dataclass."""
    lines = ["dataset=manifest", "dataset.path=a.csv", "model=wavlm_base", "engine=inline"]
    wanted = load_config([*lines, "engine.threads=2", "extract.layers=[1,9]"])
    mapped = compose_config(
        [],
        {
            "dataset": {"kind": "manifest", "path": "a.csv"},
            "model": "wavlm_base",
            "engine": {"kind": "inline", "threads": 2},
            "extract": {"layers": [1, 9]},
        },
    )
    built = compose_config(
        ["extract.layers=[1,9]"],
        {
            "dataset": wanted.dataset,
            "model": {"name": "wavlm_base"},
            "engine": EngineConfig(kind="inline", workers=1, threads=2),
        },
    )
    assert compose_config(lines[1:], {"dataset": "manifest"}).model.name == "wavlm_base"
    assert mapped == wanted == built


def test_a_mapping_keeps_the_defaults_of_its_option():
    """Of the default option, if it names none; a path of a model is no option."""
    config = compose_config([], {"model": {"source": "huggingface", "name": "a/b"}})
    assert config.model.source == "huggingface"
    assert config.model.name == "a/b"
    assert config.dataset.kind == "audiofolder"
    assert config.engine.kind == "ray"


@pytest.mark.parametrize(
    ("model", "source"),
    [
        ("a/b", "huggingface"),
        (Path("a/b"), "huggingface"),
        ({"name": "a/b"}, "huggingface"),
        ({"name": "a/b", "source": "checkpoint"}, "checkpoint"),
        ("a/b.pt", "checkpoint"),
        ({"name": "wavlm_base"}, "torchaudio"),
    ],
)
def test_a_model_has_the_source_of_its_name(model, source):
    """As for `load_encoder`: an id of the hub, a path or a short name; a given source stays."""
    found = compose_config([], {"model": model}).model
    assert found.source == source
    assert found.name == str(model["name"] if isinstance(model, dict) else model)


def test_the_source_of_an_override_goes_before_that_of_a_name():
    """The name in a mapping does not replace a source that is given beside it."""
    found = compose_config(["model=checkpoint"], {"model": {"name": "a/b"}})
    assert found.model.source == "checkpoint"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"datasets": "hub"}, "unknown setting datasets; did you mean dataset"),
        ({"dataset": {"pth": "x"}}, "unknown setting dataset.pth; did you mean path"),
        ({"dataset": "manifst"}, "no dataset is called 'manifst'; did you mean manifest"),
        ({"dataset": 3}, "dataset is 3; expected a mapping of settings, the name of an option or"),
        ({"extract": "all"}, "extract is 'all'; expected a mapping of settings or a ExtractConfig"),
        ({"engine": {"threads": "two"}}, "engine.threads is 'two'; expected a whole number"),
        ({"run": {"max_attempts": 0}}, "run.max_attempts is 0"),
        ({"retry_quarantined": 1}, "retry_quarantined is 1; expected true or false"),
    ],
)
def test_a_wrong_setting_is_named(settings, message):
    """With what was expected, as on the command line."""
    with pytest.raises(ConfigError, match=message):
        compose_config([], settings)
