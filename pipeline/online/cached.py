"""`cached`: an encoder that encodes every utterance once, for programs with their own datasets."""

from __future__ import annotations

import os
import sys
import threading
from multiprocessing import util
from os import PathLike, fspath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from pipeline.errors import ConfigError, StoreError
from pipeline.online.cache_store import FINGERPRINT, add, make_layout, open_cache, other_audio
from pipeline.online.collecting import Encoded, encode, fingerprint_of
from pipeline.store import index as index_files
from pipeline.store.backend.opening import absolute_location, open_backend
from pipeline.store.format.codecs import DEFAULT_CODEC
from pipeline.store.format.plan import SMALL_FRAMES_PER_UNIT, round_up_to_chunk
from pipeline.store.format.stored_form import choose_form
from pipeline.store.read.features import FeatureStore

if TYPE_CHECKING:
    from pipeline.encoders.encoder import SpeechEncoder


def cached(
    encoder: SpeechEncoder,
    store_uri: str | PathLike[str],
    *,
    dtype: str = DEFAULT_CODEC.name,
    frames_per_unit: int = SMALL_FRAMES_PER_UNIT,
) -> CachedEncoder:
    """Give an encoder a store in which it looks before it encodes.

    For datasets that load audio themselves: `features = cache(utterance_id, waveform)` returns the
    features of the store if the id is there, and encodes otherwise. What is new is collected, and
    committed as a unit when that is full, at the end of a `with` block, and when the process ends.
    Until then it is in the memory of the process, and a killed process loses it.

    Any number of processes may use a store at a time, such as the workers of a DataLoader, and
    several jobs: an id is stored once. The store is read by `open_store` and all commands, but
    `extract` and `relabel` refuse it, because it has no dataset. Its column `fingerprint` stands
    for the samples of each waveform.

    Args:
        encoder: From `load_encoder`.
        store_uri: Path of the store; it is made if need be.
        dtype: How values are stored, as for `extract.dtype`: "float16", "float32", "bfloat16" or
            "int8".
        frames_per_unit: Frames of a unit of a new store. Each process has one in memory, 113 MB for
            12 base layers by default (two minutes); while it is committed, two, and in a bucket,
            where it goes up from memory, three. A unit takes its whole size on the disk even if it
            is not full.

    Raises:
        ConfigError: A setting is wrong.
        IdentityError: The store has features of another encoder, or was extracted.
        StoreError: The store cannot be read or written.

    Example:
        >>> with cached(load_encoder("hubert_base"), "features") as cache:   # doctest: +SKIP
        ...     cache("clip-1", waveform).shape
        torch.Size([12, 212, 768])
    """
    if frames_per_unit < 1:
        raise ConfigError(f"frames_per_unit is {frames_per_unit}; expected at least 1")
    return CachedEncoder(encoder, store_uri, dtype, round_up_to_chunk(frames_per_unit))


class CachedEncoder:
    """An encoder with a store; see `cached`.

    May be called by several threads, one at a time encodes. After a fork, each process collects and
    commits for itself.
    """

    def __init__(
        self, encoder: SpeechEncoder, store_uri: str | PathLike[str], dtype: str, capacity: int
    ) -> None:
        """Use `cached`."""
        self._encoder = encoder
        self._backend = open_backend(absolute_location(str(fspath(store_uri))))
        codec = choose_form(dtype, "frames", "mean", prefix="").codec
        self._layout = open_cache(self._backend, encoder, make_layout(encoder, codec, capacity))
        self._store = FeatureStore(self._backend)
        self._units = set(index_files.committed_units(self._backend))  # those that it shows
        self._renew()

    def __call__(
        self, utterance_id: str, waveform: Tensor, sample_rate_hz: int | None = None
    ) -> Tensor:
        """Return the features of an utterance.

        They are those that an extraction of the waveform with this encoder stores, bit for bit if
        the utterance is alone in its batch there, else within rounding.

        Args:
            utterance_id: Its id; the same one in every epoch and every process.
            waveform: float32 [n_samples], mono, nominally in [-1, 1], at the encoder's rate
                (`encoder.sample_rate_hz`, 16 kHz); a tensor on any device, or an array.
            sample_rate_hz: Its rate, if it should be checked.

        Returns:
            [n_layers, n_frames, dim] on the CPU, as `FeatureStore.read` returns it.

        Raises:
            ConfigError: The rate is not that of the encoder, or the id is not a text.
            EncoderError: The waveform has not this form, or its features cannot be stored.
            StoreError: The id was encoded with another waveform before; or a full unit cannot be
                committed.
        """
        rate_hz = self._encoder.sample_rate_hz
        if sample_rate_hz not in (None, rate_hz):
            raise ConfigError(
                f"utterance {utterance_id!r} has {sample_rate_hz} Hz; the encoder needs {rate_hz} "
                "Hz: resample it, for example by torchaudio.functional.resample"
            )
        if not isinstance(utterance_id, str) or not utterance_id:
            raise ConfigError(f"the id of an utterance is {utterance_id!r:.80}; expected a text")
        waveform = torch.as_tensor(waveform)
        fingerprint = fingerprint_of(waveform)
        with self._lock_of_process():
            found = self._find(utterance_id, fingerprint)
            if found is not None:
                return found
            new = encode(self._encoder, self._layout, utterance_id, waveform, fingerprint)
            self._collection.put(new)
            return new.features(self._layout.codec)

    def flush(self) -> None:
        """Commit what is collected in this process, also if the unit is not full.

        Raises:
            StoreError: It cannot be committed; it stays collected.
        """
        with self._lock_of_process():
            self._collection.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.flush()

    def __getstate__(self) -> dict[str, Any]:
        raise ConfigError(
            "an encoder cannot be pickled, so a cached one neither: start the workers of a "
            "DataLoader with multiprocessing_context='fork', or call `cached` in each worker, as "
            "with an encoder on a GPU, because CUDA does not work after a fork"
        )

    def _renew(self) -> None:
        """Begin to collect in this process."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._collection = _Collection(self)

    def _lock_of_process(self) -> threading.Lock:
        """Return the lock; a fork leaves what its parent has collected to its parent."""
        if self._owner != os.getpid():
            self._renew()
        return self._lock

    def _find(self, name: str, fingerprint: int) -> Tensor | None:
        """Return the features of an utterance that was encoded before; None if it was not.

        Raises:
            StoreError: It was, with another waveform.
        """
        collected = self._collection.get(name)
        known = collected.fingerprint if collected is not None else self._stored(name)
        if known is None:
            return None
        if known != fingerprint:
            raise StoreError(other_audio(name, self._backend))
        return (
            self._store.read(name) if collected is None else collected.features(self._layout.codec)
        )

    def _stored(self, name: str) -> int | None:
        """Return the fingerprint of a committed utterance; look for new units if it is missing."""
        if name not in self._store:
            units = set(index_files.committed_units(self._backend))
            if units == self._units:
                return None
            self._store.refresh()
            self._units = units
            if name not in self._store:
                return None
        column = self._store.metadata[FINGERPRINT]
        return int(column[self._store.position(name)].as_py())


class _Collection:
    """What one process has encoded and not committed.

    It is committed when the process ends, or when nobody needs its encoder any more.
    """

    def __init__(self, cache: CachedEncoder) -> None:
        self._backend, self._layout = cache._backend, cache._layout
        self._rate_hz = cache._encoder.sample_rate_hz
        self._waiting: dict[str, Encoded] = {}
        self._n_frames = 0
        self._cache = cache
        self._is_registered = False

    def get(self, name: str) -> Encoded | None:
        """Return an utterance that is collected."""
        return self._waiting.get(name)

    def put(self, item: Encoded) -> None:
        """Collect an utterance; commit what is collected before it would be more than a unit.

        Raises:
            StoreError: It cannot be committed.
        """
        if not self._is_registered:
            self._is_registered = True
            util.Finalize(self._cache, self._flush_at_end, exitpriority=100)
            del self._cache
        layout = self._layout
        is_full = self._n_frames + item.n_frames > layout.frames_per_unit
        if is_full or len(self._waiting) == layout.utterances_per_slot:
            self.flush()
        self._waiting[item.id] = item
        self._n_frames += item.n_frames
        if self._n_frames >= layout.frames_per_unit:
            self.flush()

    def flush(self) -> None:
        """Commit everything.

        Raises:
            StoreError: It cannot be committed; it stays collected, except for what has other audio
                in the store.
        """
        if not self._waiting:
            return
        utterances = list(self._waiting.values())
        other = add(self._backend, self._layout, utterances, self._rate_hz)
        self._waiting, self._n_frames = {}, 0
        if other:
            raise StoreError(other_audio(other[0], self._backend))

    def _flush_at_end(self) -> None:
        """Commit everything; there is nobody any more to raise an error to."""
        n = len(self._waiting)
        try:
            self.flush()
        except StoreError as error:
            sys.stderr.write(f"{n} utterances are not stored and will be encoded again: {error}\n")
