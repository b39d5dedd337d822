"""What the mp3 decoder prints: kept from the terminal, and turned into a flag."""

from __future__ import annotations

import ctypes
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.audio.backends.mpg123_messages import captured, tell_of_damage
from pipeline.audio.decode import decode, decode_blocks
from pipeline.audio.probe import probe
from pipeline.sources.base import Segment
from tests.helpers.corpus import RATE_HZ, voice

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "fopencookie"), reason="only glibc lets a program replace stderr"
)


def mp3() -> bytearray:
    """A sound mp3 of three seconds."""
    file = io.BytesIO()
    soundfile.write(file, voice(3.0, 1), RATE_HZ, format="MP3")
    return bytearray(file.getvalue())


def damaged(kind: str) -> bytes:
    """An mp3 with damage that libsndfile does not report."""
    data = mp3()
    middle = len(data) // 2
    if kind == "missing bytes":
        del data[middle : middle + 100]
    elif kind == "zeros":
        data[middle : middle + 300] = bytes(300)
    else:
        random = np.random.default_rng(5)
        for at in random.integers(middle, middle + 1000, 60):
            data[at] ^= 0xFF
    return bytes(data)


KINDS = ["missing bytes", "zeros", "other bytes"]
TAGS = {
    "nothing": b"",
    "ID3v1": b"TAG" + b"a title".ljust(125, b"\0"),
    "APE": b"APETAGEX" + (2000).to_bytes(4, "little") + (32).to_bytes(4, "little") + bytes(48),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_within_an_mp3_is_flagged_and_not_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    """Also where a long recording is read, and not where only its header is."""
    path = tmp_path / "clip.mp3"
    path.write_bytes(damaged(kind))
    segment = Segment("clip", str(path))
    probe(segment, RATE_HZ)
    assert "damaged" in decode(segment, RATE_HZ).flags
    assert "damaged" in list(decode_blocks(segment, RATE_HZ))[-1].flags
    decode(Segment("part", str(path), start_sample=8000, stop_sample=40_000), RATE_HZ)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_what_opening_a_file_prints_is_kept_from_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Half an mp3 gives a warning when it is opened; the flag for it is another one."""
    path = tmp_path / "clip.mp3"
    path.write_bytes(bytes(mp3()[: len(mp3()) // 2]))
    soundfile.info(path)
    assert "Xing" in capfd.readouterr().err
    segment = Segment("clip", str(path))
    probe(segment, RATE_HZ)
    assert [block.flags for block in decode_blocks(segment, RATE_HZ)] == [("truncated",)]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("tag", TAGS)
def test_a_sound_mp3_is_not_flagged(tmp_path: Path, tag: str) -> None:
    """Whatever tag follows it."""
    path = tmp_path / "clip.mp3"
    path.write_bytes(bytes(mp3()) + TAGS[tag])
    assert "damaged" not in decode(Segment("clip", str(path)), RATE_HZ).flags


def test_each_thread_gets_the_messages_of_its_file(tmp_path: Path) -> None:
    """Sound and damaged files are decoded at once, many times."""
    for name, data in (("sound", bytes(mp3())), *((kind, damaged(kind)) for kind in KINDS)):
        (tmp_path / f"{name}.mp3").write_bytes(data)

    def is_flagged(name: str) -> bool:
        segment = Segment(name, str(tmp_path / f"{name}.mp3"))
        return "damaged" in decode(segment, RATE_HZ).flags

    names = ["sound", *KINDS] * 8
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(is_flagged, names)) == [name != "sound" for name in names]


def c_print(text: bytes) -> None:
    """Print to the stream `stderr` of C."""
    libc = ctypes.CDLL(None)
    stream = ctypes.c_void_p.in_dll(libc, "stderr")
    libc.fputs(text, stream)
    libc.fflush(stream)


def test_what_other_threads_print_is_passed_on(capfd: pytest.CaptureFixture[str]) -> None:
    """Only the text of the thread that reads a file is kept, and only while it does."""
    c_print(b"before\n")
    with captured() as messages:
        c_print(b"[a.c:f():1] error: broken\n")
        with captured() as inner:
            c_print(b"Note: Skipped 3 bytes in input.\n")
        other = threading.Thread(target=c_print, args=(b"of another thread\n",))
        other.start()
        other.join()
    c_print(b"after\n")
    assert messages is inner
    assert b"".join(messages).count(b"\n") == 2
    assert tell_of_damage(messages)
    assert not tell_of_damage([b"Note: Trying to resync...\n", b"Warning: Xing stream size off\n"])
    assert capfd.readouterr().err == "before\nof another thread\nafter\n"
