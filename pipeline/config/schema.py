"""What plan and extract can be told: one frozen dataclass per group of settings."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetConfig:
    """Where the audio comes from.

    Attributes:
        kind: audiofolder, hub, disk (saved by `save_to_disk`) or manifest (csv, json, parquet).
        path: Folder, saved dataset or manifest.
        name: Hub dataset.
        config: Configuration of a hub dataset.
        split: Split to read; None where there is only one.
        revision: Revision of a hub dataset.
        audio_column: Column with the audio, or with its path in a manifest.
        id_column: Column with the utterance's id; None takes the file's path or name, or the row.
        columns: Columns to carry into the index; None carries every plain one.
        limit: Only the first rows; None takes all.
    """

    kind: str
    path: str | None = None
    name: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    audio_column: str = "audio"
    id_column: str | None = None
    columns: tuple[str, ...] | None = None
    limit: int | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Which encoder.

    Attributes:
        name: Short name in the registry, e.g. hubert_base; a hub id or directory for huggingface.
        source: torchaudio (the registry) or huggingface.
        weights: pretrained, random, or the path of a state dict; of the registry's models.
        seed: Of random weights.
        revision: Branch, tag or commit of a hub checkpoint.
        allow_pickle: Whether a hub checkpoint without safetensors may be read from a pickle.
    """

    name: str | None = None
    source: str = "torchaudio"
    weights: str = "pretrained"
    seed: int = 0
    revision: str | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class ExtractConfig:
    """What is extracted, and in which batches.

    Attributes:
        layers: all, superb (0 and all), or a list of layers.
        precision: fp32, bf16, fp16, or auto (fp32 on CPU, fp16 on CUDA).
        max_batch_s: Audio seconds of one padded batch; None fits it to the device.
        max_window_s: Longer utterances are encoded in overlapped windows; None takes the encoder's
            default.
        context_s: Context on each side of a window, encoded and thrown away; None likewise.
    """

    layers: str | tuple[int, ...] = "all"
    precision: str = "auto"
    max_batch_s: float | None = None
    max_window_s: float | None = None
    context_s: float | None = None


@dataclass(frozen=True)
class PlanConfig:
    """How the corpus is cut into units.

    Attributes:
        frames_per_unit: Frames per unit; None fits it to the corpus, 20 minutes at most.
    """

    frames_per_unit: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """What runs the workers.

    Attributes:
        kind: inline (this process) or ray.
        workers: Number of workers; None takes one per GPU, else one per CPU.
        threads: CPU threads per worker; None divides the CPUs among the workers.
        device: auto, cpu or cuda.
        address: Ray cluster; None takes RAY_ADDRESS, else starts a local one.
    """

    kind: str
    workers: int | None = None
    threads: int | None = None
    device: str = "auto"
    address: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """How a run behaves.

    Attributes:
        max_quarantined: Share of quarantined utterances above which the exit code is 3.
        max_attempts: Attempts at a unit, in one run, before it is given up; one that shows which
            utterance is to blame does not count.
        unit_timeout_s: After how long a unit counts as hung; None fits it to its audio.
    """

    max_quarantined: float = 0.01
    max_attempts: int = 3
    unit_timeout_s: float | None = None


@dataclass(frozen=True)
class Config:
    """Everything that a verb may need."""

    dataset: DatasetConfig
    model: ModelConfig
    engine: EngineConfig
    store: str | None = None
    retry_quarantined: bool = False
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    run: RunConfig = field(default_factory=RunConfig)
