"""The configuration: YAML groups in conf/, merged and checked into frozen dataclasses.

In: overrides of the command line. Out: a `Config` or a `SweepConfig`.
`load_config(["dataset=audiofolder", "dataset.path=clips", ...])` reads conf/config.yaml,
`load_sweep_config(["task=ks", ...])` reads conf/sweep.yaml. A misspelt key, an unknown option or a
value of the wrong type raises a ConfigError that names the nearest correct one. Contract:
`schema.py` and `sweep_schema.py`. Nothing here reads the dataset or the store.
"""

from pipeline.config.checking import build
from pipeline.config.composing import compose_config
from pipeline.config.loading import config_folder, load_config, load_sweep_config, plain_overrides
from pipeline.config.models import check_code, code_problem, register_model
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
from pipeline.errors import did_you_mean

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
    "check_code",
    "code_problem",
    "compose_config",
    "config_folder",
    "did_you_mean",
    "load_config",
    "load_sweep_config",
    "plain_overrides",
    "register_model",
]
