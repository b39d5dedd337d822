"""Settings of plan and extract: one frozen dataclass per group."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class DatasetConfig:
    """Dataset with the audio.

    Attributes:
        kind: "audiofolder", "hub", "disk" (saved by `save_to_disk`), "manifest" (csv, tsv, json,
            jsonl or parquet, or a list of NeMo or fairseq), "kaldi" (a data directory), "lhotse"
            (cuts, or supervisions with recordings, in jsonl), "webdataset" (tar files) or "parquet"
            (files with embedded audio).
        path: Folder, saved dataset or list; for tar and Parquet files also a pattern.
        name: Name of a hub dataset.
        config: Configuration of a hub dataset.
        split: Split to read; None if there is only one.
        revision: Revision of a hub dataset.
        stream: Whether ranges of a hub dataset's Parquet files are read when they are needed,
            without a download.
        audio_column: Column with the audio; in a manifest, column with its path; in tar files,
            extension of the audio members ("audio" for any).
        id_column: Column with the utterance id; None uses the file's path or name, or the number of
            the row.
        columns: Columns to copy into the index; None copies every column of plain values.
        limit: Number of rows to read from the start; None reads all.
        format: Form of a manifest: "table", "nemo" or "fairseq"; None looks at its first lines.
        tars: Tar files with the audio of a manifest of NeMo, as a path or a pattern.
        delimiter: Separator of a manifest's fields, e.g. "|"; None takes that of its suffix.
        header: Names of a manifest's columns, if it has no header.
        audio_path: Path of the audio, made of columns, e.g. "wavs/{id}.wav"; None takes
            `audio_column`.
        files: Pattern of the files of a folder, e.g. "*_mic1.flac"; None takes all audio files.
        levels: Columns of the names of a folder's directories, from the top; "_" leaves one out.
        root: Folder that relative audio paths of a list start from; None uses the list's folder.
        start_column: Column with the start of an utterance within its file; None starts at 0.
        stop_column: Column with its end; None, or an empty value, is the end of the file.
        duration_column: Column with its length, instead of its end.
        channel_column: Column with its channel, from 0; None is the mean of all channels.
        channel: Channel of every file, from 0; "each" for one utterance per channel; "mean", or
            None, for their mean.
        time_unit: Unit of these times: "seconds" or "samples" (at the native rate).
        types: Type of columns by their names: "text", "int", "float" or "bool"; None
            takes those of the dataset, and of a text table what its values are.
    """

    kind: str
    path: str | None = None
    name: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None
    stream: bool = False
    audio_column: str = "audio"
    id_column: str | None = None
    columns: tuple[str, ...] | None = None
    limit: int | None = None
    format: str | None = None
    tars: str | None = None
    delimiter: str | None = None
    header: tuple[str, ...] | None = None
    audio_path: str | None = None
    files: str | None = None
    levels: tuple[str, ...] | None = None
    root: str | None = None
    start_column: str | None = None
    stop_column: str | None = None
    duration_column: str | None = None
    channel_column: str | None = None
    channel: str | None = None
    time_unit: str = "seconds"
    types: dict[str, str] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """Encoder.

    Attributes:
        name: Short name, e.g. "hubert_base"; for "huggingface" a hub id or directory; for
            "checkpoint" the path of a file of fairseq, unilm or s3prl; for "module" the name of an
            encoder that is registered, or that `target` gets.
        source: "torchaudio" (models with a short name), "huggingface", "checkpoint" or "module".
        weights: For models with a short name: "pretrained", "random", or the path of a file.
        seed: Seed of random weights.
        revision: Branch, tag or commit of a hub checkpoint.
        allow_pickle: Whether a checkpoint without safetensors may be read from a pickle.
        language: Language of the adapters of a hub checkpoint, as MMS has them; None for the
            adapters of its main weights.
        target: Code of the user that makes a torch module, "package.module:factory"; it runs only
            if the user allows it.
        layers: Names of the submodules whose outputs are the layers of this module.
        version: Version of this code.
    """

    name: str | None = None
    source: str = "torchaudio"
    weights: str = "pretrained"
    seed: int = 0
    revision: str | None = None
    allow_pickle: bool = False
    language: str | None = None
    target: str | None = None
    layers: tuple[str, ...] | None = None
    version: str | None = None


@dataclass(frozen=True)
class ExtractConfig:
    """Layers, precision, batches and windows, and what is stored.

    Attributes:
        layers: "all" (1..N), "superb" (0..N), or a list of layers by number or name.
        keep: What is stored of an utterance, of "frames" and "pooled".
        pooling: Statistics over its frames that "pooled" holds, of "mean", "std", "max", "first"
            and "last".
        dtype: How frame values are stored: "float16", "float32", "bfloat16" or "int8".
        precision: "fp32", "bf16", "fp16", or "auto" (fp32 on CPU, fp16 on CUDA).
        max_batch_s: Audio seconds of a batch; None: 20 on CPU, 320 on CUDA.
        max_window_s: Longer utterances are encoded in overlapping windows of this many seconds;
            None uses the encoder's default.
        context_s: Seconds of context on each side of a window, encoded and dropped; None uses the
            encoder's default.
    """

    layers: str | tuple[int | str, ...] = "all"
    keep: str | tuple[str, ...] = ("frames", "pooled")
    pooling: str | tuple[str, ...] = ("mean",)
    dtype: str = "float16"
    precision: str = "auto"
    max_batch_s: float | None = None
    max_window_s: float | None = None
    context_s: float | None = None


@dataclass(frozen=True)
class PlanConfig:
    """Size of a unit.

    Attributes:
        frames_per_unit: Frames per unit; None depends on the corpus, at most 20 minutes.
    """

    frames_per_unit: int | None = None


@dataclass(frozen=True)
class EngineConfig:
    """Executor and its workers.

    Attributes:
        kind: "inline" (this process) or "ray".
        workers: Number of workers; None starts one per GPU, or one per CPU as memory allows.
        threads: CPU threads per worker; None divides the CPUs among the workers.
        device: "auto", "cpu" or "cuda".
        address: Address of a Ray cluster; None uses RAY_ADDRESS, else starts a local one.
    """

    kind: str
    workers: int | None = None
    threads: int | None = None
    device: str = "auto"
    address: str | None = None


@dataclass(frozen=True)
class RunConfig:
    """Limits of a run.

    Attributes:
        max_quarantined: Share of quarantined utterances above which the exit code is 3.
        max_changed: Share of a store's utterances that may be gone from its dataset or have other
            audio; a run is refused if more have, and more than ten.
        max_attempts: Failed attempts at a unit, in one run, after which the run gives it up; an
            attempt that identifies the culprit utterance does not count.
        unit_timeout_s: Seconds after which a unit counts as hung; None depends on its audio and on
            the speed of the run.
    """

    max_quarantined: float = 0.01
    max_changed: float = 0.5
    max_attempts: int = 3
    unit_timeout_s: float | None = None


@dataclass(frozen=True)
class Config:
    """All settings of plan, extract and selfcheck.

    Attributes:
        dataset: Dataset with the audio.
        model: Encoder.
        engine: Executor and its workers.
        store: Path of the store; None if there is none.
        retry_quarantined: Whether to retry quarantined utterances.
        restore_dropped: Whether to extract utterances again that were dropped from the store.
        extract: Layers, precision, batches and windows.
        plan: Size of a unit.
        run: Limits of a run.
    """

    dataset: DatasetConfig
    model: ModelConfig
    engine: EngineConfig
    store: str | None = None
    retry_quarantined: bool = False
    restore_dropped: bool = False
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    run: RunConfig = field(default_factory=RunConfig)
