"""Settings of a sweep: recipes in conf/task, defaults in conf/sweep.yaml, checks and messages."""

from __future__ import annotations

import dataclasses

import pytest
from omegaconf import OmegaConf

from pipeline.config import (
    SplitConfig,
    SweepConfig,
    TaskConfig,
    config_folder,
    load_config,
    load_sweep_config,
)
from pipeline.errors import ConfigError
from pipeline.probing.trainers.pooled import resolve_steps

TASKS = sorted(path.stem for path in (config_folder() / "task").iterdir())


def keys(name):
    """Content of a YAML file."""
    return OmegaConf.to_container(OmegaConf.load(config_folder() / name))


def test_the_tasks_of_the_design_are_there():
    """Classes and numbers of utterances, transcripts, and classes of spans and frames."""
    known = {
        "abx",
        "asr",
        "er",
        "frame",
        "ic",
        "ks",
        "lid",
        "phone",
        "pr",
        "regression",
        "sid",
        "word",
    }
    assert set(TASKS) >= known


@pytest.mark.parametrize("name", TASKS)
def test_every_recipe_loads_unchanged(name):
    """Its name is that of its file."""
    stated = keys(f"task/{name}.yaml")
    task = load_sweep_config([f"task={name}"]).task
    assert task.name == name
    for key, value in stated.items():
        assert getattr(task, key) == (tuple(value) if isinstance(value, list) else value)
    assert (task.kind == "frames") == (task.tokens is not None)


def test_every_setting_of_a_recipe_is_in_some_recipe():
    """Every field of `TaskConfig` can be found in the YAML files."""
    stated = set().union(*(keys(f"task/{name}.yaml") for name in TASKS))
    assert stated == {item.name for item in dataclasses.fields(TaskConfig)}


def test_the_defaults_are_spelt_out():
    """conf/sweep.yaml has every other setting, with the default of its dataclass."""
    stated = keys("sweep.yaml")
    config = load_sweep_config(["task=ks"])
    assert stated.keys() - {"defaults", "hydra"} == {
        item.name for item in dataclasses.fields(SweepConfig)
    } - {"task"}
    assert config == SweepConfig(config.task)
    assert config.split == SplitConfig()


def test_overrides_are_applied():
    """Lists, texts and numbers follow the same rules as for other verbs."""
    config = load_sweep_config(
        [
            "task=ks",
            "layers=[1,6,12]",
            "weighted=false",
            "seeds=[7]",
            "labels=[word]",
            "out=my results/x",
            "split.dev=held out",
            "split.folds=groups",
            "split.speaker=who",
            "split.column=null",
            "task.lrs=[1,1e-4]",
        ]
    )
    assert (config.layers, config.weighted, config.seeds) == ((1, 6, 12), False, (7,))
    assert (config.labels, config.out) == (("word",), "my results/x")
    assert (config.split.dev, config.split.folds, config.split.column) == (
        "held out",
        "groups",
        None,
    )
    assert config.task.lrs == (1.0, 1e-4)
    assert load_sweep_config(["task=ks", "split.folds=5"]).split.folds == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["layers=all"],
            "no task is given; set task=abx|asr|er|frame|ic|ks|lid|phone|pr|regression|sid|sv|word",
        ),
        (["task=kws"], "no task is called 'kws'; did you mean ks?"),
        (["task=keyword"], "no task is called 'keyword'; did you mean ks?"),
        (["task=Speaker-Verification"], "'Speaker-Verification'; did you mean sv?"),
        (["task=emotion_recognition"], "did you mean er?"),
        (["task=words"], "no task is called 'words'; did you mean word?"),
        (["task=ks,sid"], "no task is called 'ks,sid'; a sweep has one task. Run `strata sweep` f"),
        (["task=[ks,sid]"], "for each, then `strata report SWEEP_DIR…` for all"),
        (["task=ks", "lrs=[1e-3]"], "unknown setting lrs; did you mean task.lrs?"),
        (["task=ks", "steps=5"], "unknown setting steps; did you mean task.steps?"),
        (["task=ks", "column=part"], "unknown setting column; did you mean split.column?"),
        (["task=ks", "task.lr=[1]"], "unknown setting task.lr; did you mean task.lrs"),
        (["task=ks", "model=tiny"], "unknown setting model"),
        (["task=ks", "layers=6"], "layers is '6'; expected all or a list as in [1,6,12]"),
        (["task=ks", "layers=[]"], "layers is []; expected all or a list as in [1,6,12]"),
        (["task=ks", "seeds=[]"], "seeds is []; expected one or more different numbers"),
        (["task=ks", "seeds=[1,1]"], "seeds is [1, 1]; expected one or more different numbers"),
        (["task=ks", "seeds=[-1]"], "seeds is [-1]; expected whole numbers from 0"),
        (["task=ks", "task.lrs=[0]"], "task.lrs is [0.0]; expected numbers more than 0"),
        (["task=ks", "task.lrs=[a]"], "task.lrs is ['a']; expected a list of numbers"),
        (["task=ks", "task.batch=0"], "task.batch is 0; expected at least 1"),
        (["task=ks", "task.projection=0"], "task.projection is 0; expected at least 1"),
        (["task=ks", "device=gpu"], "device is 'gpu'"),
        (["task=ks", "split.ratios=[1,0,0]"], "expected three shares between 0 and 1"),
        (["task=ks", "split.ratios=[.5,.2,.2]"], "expected shares that sum to 1"),
        (["task=ks", "split.folds=1"], "split.folds is 1; expected at least 2"),
        (["task=ks", "split.folds=many"], "split.folds is 'many'; expected a whole number"),
        (["task=ks", "split.folds=groups"], "split.folds=groups needs split.speaker=COLUMN"),
        (["task=ks", "split.folds=5", "split.column=part"], "contradict each other; give one"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(overrides, message):
    """The message has the key, the value, and what was expected."""
    with pytest.raises(ConfigError) as caught:
        load_sweep_config(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_extract_knows_nothing_of_tasks():
    """Settings of a sweep are unknown to other verbs."""
    with pytest.raises(ConfigError, match="unknown setting task"):
        load_config(["task=ks"])


@pytest.mark.parametrize(
    ("n_train", "steps"), [(50, 640), (2400, 640), (51_000, 20 * 399), (100, 640)]
)
def test_large_training_sets_get_more_steps(n_train, steps):
    """At least 20 epochs and 32 evaluations on dev; explicit settings are kept."""
    task = load_sweep_config(["task=ks"]).task
    found = resolve_steps(task, n_train)
    assert (found.steps, found.eval_every) == (steps, steps // 32)
    given = dataclasses.replace(task, steps=10, eval_every=3)
    assert resolve_steps(given, n_train) == given
