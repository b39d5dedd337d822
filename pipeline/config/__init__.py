"""The configuration: Hydra's YAML groups in conf/, merged and checked into frozen dataclasses.

`load_config(["dataset=audiofolder", "dataset.path=clips", ...])` composes conf/config.yaml with
the overrides of the command line, `load_sweep_config(["task=ks", ...])` conf/sweep.yaml. A misspelt
key, an unknown group or a value of the wrong type is a ConfigError that names the nearest right
one. Nothing here touches the dataset or the store.
"""

from pipeline.config.checking import build, nearest
from pipeline.config.loading import config_folder, load_config, load_sweep_config, plain_overrides
from pipeline.config.schema import (
    Config,
    DatasetConfig,
    EngineConfig,
    ExtractConfig,
    ModelConfig,
    PlanConfig,
    RunConfig,
)
from pipeline.config.sweep_schema import SplitConfig, SweepConfig, TaskConfig

__all__ = [
    "Config",
    "DatasetConfig",
    "EngineConfig",
    "ExtractConfig",
    "ModelConfig",
    "PlanConfig",
    "RunConfig",
    "SplitConfig",
    "SweepConfig",
    "TaskConfig",
    "build",
    "config_folder",
    "load_config",
    "load_sweep_config",
    "nearest",
    "plain_overrides",
]
