from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

INTERFACE: int

class MappedFile:
    def __new__(cls, descriptor: int, whole: bool, /) -> MappedFile: ...
    def read_into(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool, /
    ) -> bool: ...
    def read_ready(
        self, parts: Sequence[npt.NDArray[Any]], offset: int, streams: bool, /
    ) -> bool: ...
    def needs(self, offset: int, length: int, /) -> int: ...
    def fetch(self, offset: int, length: int, /) -> None: ...
    def decode_int8(
        self, offset: int, scales: npt.NDArray[Any], out: npt.NDArray[Any], streams: bool, /
    ) -> bool: ...
    def scatter_rows(
        self,
        offset: int,
        length: int,
        first: int,
        sources: int,
        places: int,
        n_rows: int,
        row_bytes: int,
        out: int,
        step_bytes: int,
        /,
    ) -> bool: ...
