"""The interpreter of pickles: the data is that of `pickle`, and nothing of a pickle is run."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copyreg
import pickle
import struct
import sys

import pytest
from omegaconf import OmegaConf

from pipeline.encoders.checkpoints import pickles
from pipeline.encoders.checkpoints.pickles import Stream, read_pickle
from pipeline.encoders.checkpoints.records import Inert, Named, plain


def read(content):
    return read_pickle(Stream(memoryview(content)), {}, lambda key: key)


DATA = [
    None,
    True,
    [1, -1, 255, 256, 65536, -(2**31), 2**31, 2**80, -(2**2000)],
    [0.1, float("inf"), 1e-300],
    "text with 'quotes', \n lines and ü, 漢",
    ["a" * 300, "b" * 70_000, b"bytes", b"x" * 300],
    {"a": {"b": [{}, [], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]}, 3: 4, None: 1, (1, "x"): 2},
]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("value", DATA, ids=range(len(DATA)))
def test_plain_data_is_read_as_pickle_reads_it(value, protocol):
    """Scalars, texts and containers of every protocol, several times in one list."""
    if protocol < 3:  # bytes are calls of a codec there
        value = (
            [item for item in value if not isinstance(item, bytes)] if value == DATA[5] else value
        )
    found = read(pickle.dumps([value, value, [value]], protocol))
    assert found == [value, value, [value]]
    assert repr(found) == repr([value, value, [value]])


def test_a_pickle_is_read_to_its_end_and_no_further():
    """Several pickles follow each other in one file."""
    parts = [pickle.dumps(part, 2) for part in ("first", [2])]
    stream = Stream(memoryview(b"".join(parts) + b"the rest"))
    assert [read_pickle(stream, {}, id) for _ in parts] == ["first", [2]]
    assert stream.position == sum(map(len, parts))


def test_a_cycle_is_built():
    """A list may contain itself, and an object its own state."""
    loop = []
    loop.append(loop)
    found = read(pickle.dumps(loop))
    assert found[0] is found
    parent = argparse.Namespace()
    parent.itself = parent
    found = read(pickle.dumps(parent))
    assert found.state["itself"] is found


EVIL = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
class Tool:
    def __new__(cls, *args, **kwargs):
        return run(*args)
    def __call__(self, *args):
        return run(*args)
def run(*args, **kwargs):
    pathlib.Path(__file__).with_name("called").touch()
"""


class _Call:
    """An object whose pickle calls a function by its name."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def _payloads():
    """Return pickles that run `evil.run`, or import it, when `pickle` loads them."""
    text = pickle.dumps("x", 0)[:-1]
    ref = b"cevil\nrun\n"
    yield "REDUCE", ref + b"(" + text + b"tR."
    yield "STACK_GLOBAL", b"\x80\x04\x8c\x04evil\x8c\x03run\x93)R."
    yield "INST", b"(" + text + b"ievil\nrun\n."
    yield "OBJ", b"(" + ref + text + b"o."
    yield "NEWOBJ", b"\x80\x02cevil\nTool\n)\x81."
    yield "NEWOBJ_EX", b"\x80\x04cevil\nTool\n)}\x92."
    yield "EXT1", b"\x80\x02\x82\xf1)R."
    yield "builtins.eval", b"c__builtin__\neval\n(" + _text("__import__('evil').run()") + b"tR."
    yield "builtins.exec", b"cbuiltins\nexec\n(" + _text("import evil; evil.run()") + b"tR."
    module = b"c__builtin__\n__import__\n(" + _text("evil") + b"tR"
    yield "getattr", b"c__builtin__\ngetattr\n(" + module + _text("run") + b"tR)R."
    yield "functools.partial", b"cfunctools\npartial\n(" + ref + b"tR)R."
    yield "os.system", b"cposix\nsystem\n(" + _text(f"{sys.executable} -c 'import evil'") + b"tR."
    yield (
        "reconstructor",
        (b"ccopy_reg\n_reconstructor\n(cevil\nTool\nc__builtin__\nobject\nNtR" + ref + b")Rb."),
    )
    yield "BUILD", b"cevil\nTool\n" + b"}" + _text("x") + ref + b")Rsb."
    yield "in a dict key", b"}" + ref + b")RI1\ns."
    yield "dotted name", b"\x80\x04\x8c\x04evil\x8c\x0dTool.__call__\x93" + ref + b")R\x85R."


def _text(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("name", "payload"), [pytest.param(*pair, id=pair[0]) for pair in _payloads()]
)
def test_nothing_of_a_pickle_is_run(tmp_path, monkeypatch, name, payload):
    """Neither imported nor called, by whatever operation; `pickle` itself does run each of them."""
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    copyreg.add_extension("evil", "run", 0xF1)
    marks = [tmp_path / "imported", tmp_path / "called"]
    try:
        with contextlib.suppress(Exception):
            pickle.loads(payload)
        assert marks[0].exists()
        for mark in marks:
            mark.unlink(missing_ok=True)
        sys.modules.pop("evil", None)
        with contextlib.suppress(ValueError):
            read(payload)
        assert not any(mark.exists() for mark in marks)
        assert "evil" not in sys.modules
    finally:
        copyreg.remove_extension("evil", "run", 0xF1)
        sys.modules.pop("evil", None)


def test_objects_are_kept_as_data():
    """Class, arguments, state, items and entries stay, whatever the pickle does with them."""
    cases = {
        b"cany\nThing\n(I1\nI2\ntR.": ("any.Thing", (1, 2)),
        b"\x80\x02cany\nThing\n(I1\nt\x81.": ("any.Thing", (1,)),
        b"ccopyreg\n_reconstructor\n(cany\nThing\nc__builtin__\nobject\nNtR.": (
            "any.Thing",
            (None,),
        ),
        b"(I1\niany\nThing\n.": ("any.Thing", (1,)),
        b"(cany\nThing\nI1\no.": ("any.Thing", (1,)),
        b"cany\nfactory\n)R)R.": ("a call of an object", ()),
    }
    for content, (kind, args) in cases.items():
        found = read(content)
        assert (found.kind, found.args) == (kind, args)
    found = read(b"cany\nThing\n)R}S'a'\nI1\nsb(I5\nI6\neS'k'\nI7\ns.")
    assert (found.state, found.items, found.entries) == ({"a": 1}, [5, 6], [("k", 7)])
    assert read(b"cany\nThing\n.").kind == "any.Thing"
    assert isinstance(read(pickle.dumps(len)), Named)
    assert isinstance(read(pickle.dumps(collections.Counter("aab"))), Inert)
    assert read(pickle.dumps({1, 2}, 4)) == [1, 2]
    assert read(pickle.dumps(collections.OrderedDict(a=1))) == {"a": 1}
    assert read(pickle.dumps(collections.defaultdict(list, a=1))) == {"a": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not enough data|no end|exhausted"),
        (b"I1\n", "no end|exhausted"),
        (b"\xff.", "unknown"),
        (b"\x80\x05\x97.", "NEXT_BUFFER, which no checkpoint has"),
        (b".", "IndexError"),
        (b"(.", "a mark in place of a value"),
        (b"(q\x00.", "a mark in place of a value"),
        (b"I1\nt.", "a mark is missing"),
        (b"I1\nI2\nR.", "a int in place of a tuple"),
        (b"h\x07.", "KeyError"),
        (b"I1\nI2\na.", "a int in place of a list"),
        (b"}I1\nu.", "mark is missing"),
        (b"}(I1\nu.", "zip"),
        (b"}]I1\ns.", "a key of the type list"),
        (b"}(]tI1\ns.", "a key of the type tuple"),
        (b"I1\nI2\nb.", "a state to a int"),
        (b"\x80\x04I1\nI2\n\x93.", "in place of a str"),
        (b"L" + b"9" * 10_000 + b"L\n.", "Exceeds the limit|invalid literal"),
        (b"\x8d" + struct.pack("<Q", 1 << 40) + b"x.", "a string of 1099511627776 bytes"),
        (b"\x8b" + struct.pack("<i", 1 << 30) + b"x.", "a string of 1073741824 bytes"),
    ],
)
def test_a_damaged_pickle_is_a_value_error(content, message):
    """Nothing else is raised, and the message is one line."""
    with pytest.raises(ValueError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_a_deeply_nested_pickle_neither_crashes_nor_hangs():
    """Nesting costs no stack, in lists, tuples and objects; as a key it is refused."""
    depth = 20_000
    found = read(b"(" * depth + b"I1\n" + b"l" * depth + b".")
    for _ in range(depth):
        [found] = found
    assert found == 1
    read(b"(" * depth + b"t" * depth + b".")
    read(b"cany\nThing\n" * depth + b"\x85R" * (depth - 1) + b".")
    depth = 100_000  # to hash a tuple of twice this depth overflows the stack of C
    with pytest.raises(ValueError, match="a key of the type tuple"):
        read(b"}" + b"(" * depth + b"t" * depth + b"I1\ns.")


def test_operations_and_lines_are_limited(monkeypatch):
    """A pickle that grows without an end is refused before it fills the memory."""
    content = pickle.dumps(list(range(20)))
    assert read(content) == list(range(20))
    monkeypatch.setattr(pickles, "_MAX_OPCODES", 20)
    with pytest.raises(ValueError, match="its pickle has more than 20 operations"):
        read(content)
    monkeypatch.setattr(pickles, "_MAX_READ_BYTES", 300)
    with pytest.raises(ValueError, match="a line without an end"):
        read(b"V" + b"a" * 1000)


def test_settings_become_plain_values():
    """Namespaces, omegaconf's containers and enumerations, but no other objects."""
    settings = {"a": 1, "none": None, "list": [1, "x", {"y": 2.5}], "other": "${a}", "flag": True}
    container = OmegaConf.create({"model": settings, "missing": "???"})
    for value in (
        argparse.Namespace(model=argparse.Namespace(**settings), missing="???"),
        container,
        {"model": OmegaConf.create(settings), "missing": "???"},
    ):
        for protocol in (2, 4):
            found = plain(read(pickle.dumps(value, protocol)))
            assert found == {"model": settings, "missing": "???"}
    assert plain(read(b"cany\nChoice\n(S'gelu'\ntR.")) == "gelu"
    assert plain(read(b"cnumpy\nscalar\n(S'gelu'\ntR.")) is None
    assert plain(read(b"cany\nfunction\n.")) is None


def test_settings_that_multiply_are_refused():
    """Thirty lists, each of which holds the previous one ten times, are not expanded."""
    value = [1]
    for _ in range(30):
        value = [value] * 10
    with pytest.raises(ValueError, match="its settings have more than 100000 values"):
        plain(read(pickle.dumps(value)))


def test_settings_that_contain_themselves_are_refused():
    """The error says that they are nested too deeply."""
    loop = {}
    loop["again"] = loop
    with pytest.raises(ValueError, match="nested more than 60 levels"):
        plain(read(pickle.dumps(loop)))
