"""Files of PyTorch in both formats: what they hold, what is refused, and damage of every kind."""

from __future__ import annotations

import io
import pickle
import random
import struct
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoders.checkpoints import files
from pipeline.encoders.checkpoints.files import open_tensor_file
from pipeline.encoders.checkpoints.records import Inert
from pipeline.encoders.checkpoints.tensors import StoredTensor
from pipeline.errors import WeightsError

FORMATS = {"zip": True, "before 1.6": False}


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    """Save an object in one of the two formats, and return the path."""

    def save(content):
        path = tmp_path / "weights.pt"
        torch.save(content, path, _use_new_zipfile_serialization=FORMATS[request.param])
        return path

    return save


def tensors():
    base = torch.arange(60, dtype=torch.float32).reshape(6, 10)
    views = {"view": base[2:4, 1:9:2], "transposed": base.t(), "whole": base}
    kinds = {
        str(dtype): (torch.randn(3, 5) * 4).to(dtype)
        for dtype in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32)
    }
    kinds |= {
        str(dtype): torch.ones(7).to(dtype) for dtype in (torch.int8, torch.uint8, torch.bool)
    }
    shapes = {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "short": torch.ones(7).short(),
    }
    parameter = {"parameter": torch.nn.Parameter(torch.randn(4))}
    return {**views, **kinds, **shapes, **parameter}


def test_tensors_are_those_of_torch(save):
    """Views, parameters, every dtype, scalars and empty tensors; all of them aligned."""
    expected = tensors()
    file = open_tensor_file(save({"model": expected}))
    for name, tensor in expected.items():
        found = file.read(file.content["model"][name])
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found, tensor.detach()), name
        assert found.data_ptr() % found.element_size() == 0, name


def test_state_dicts_and_other_objects(save):
    """An OrderedDict is a dict, an optimizer's state is plain, and a module is inert."""
    model = torch.nn.Linear(2, 3)
    optimizer = {
        "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 2)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.98), "params": [0, 1]}],
    }
    content = {
        "state": model.state_dict(),
        "optimizer": optimizer,
        "module": torch.nn.Linear(2, 3),
        "size": torch.Size([2, 3]),
    }
    file = open_tensor_file(save(content))
    state = file.content["state"]
    assert list(state) == ["weight", "bias"]
    assert torch.equal(file.read(state["weight"]), model.weight)
    assert file.content["optimizer"]["param_groups"][0]["lr"] == 1e-3
    assert isinstance(file.content["module"], Inert)
    assert file.content["size"] == (2, 3)


def test_tensors_are_views_of_the_mapped_file(tmp_path):
    """Nothing is copied in the format of 1.6; a change of a tensor does not reach the file."""
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(1000)}, path)
    before = path.read_bytes()
    file = open_tensor_file(path)
    first, second = (file.read(file.content["a"]) for _ in range(2))
    assert first.data_ptr() == second.data_ptr()
    first.add_(1)
    del file
    assert second.sum() == 1000
    assert path.read_bytes() == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse files")
def test_a_large_file_is_described_without_reading_its_tensors(tmp_path):
    """A file of 20 GB of zeros, sparse on the disk, is opened at once."""
    path, n_values = tmp_path / "large.pt", 5_000_000_000
    head = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, head, _use_new_zipfile_serialization=False)
    parts = head.getvalue()[: -8 - 4]  # without the length of the storage and the storage
    first = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    first += pickle.dumps({"little_endian": True}, 2)
    assert parts.startswith(first[:10])
    content = first + _described([(0, (n_values,), (1,))], n_values, legacy=True)
    content += pickle.dumps(["0"], 2) + struct.pack("<q", n_values)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + 4 * n_values)
    file = open_tensor_file(path)
    assert file.content["t0"].shape == (n_values,)


class _Pickler(pickle.Pickler):
    """Writes `_Storage` as a persistent id."""

    def __init__(self, file, legacy):
        super().__init__(file, 2)
        self._legacy = legacy

    def persistent_id(self, value):
        if isinstance(value, _Storage):
            return ("storage", value.kind, value.key, "cpu", value.n_values, *[None] * self._legacy)
        return None


class _Storage:
    def __init__(self, n_values, key="0", kind=torch.FloatStorage):
        self.n_values, self.key, self.kind = n_values, key, kind


class _Tensor:
    def __init__(self, storage, offset, shape, strides):
        self.call = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.call


def _described(views, n_values, *, legacy=False, **storage):
    """Return the pickle of tensors `t0`, `t1`, ... with these offsets, shapes and strides."""
    file = io.BytesIO()
    shared = _Storage(n_values, **storage)
    content = {f"t{i}": _Tensor(shared, *view) for i, view in enumerate(views)}
    _Pickler(file, legacy).dump(content)
    return file.getvalue()


def write_zip(path, content, entries=None, **options):
    """Write an archive with a pickle and other entries."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("x/data.pkl", content)
        for name, value in (entries or {"x/data/0": bytes(40)}).items():
            archive.writestr(name, value)
    return path


GOOD = [(0, (2, 5), (5, 1))]


@pytest.mark.parametrize(
    ("views", "n_values", "storage", "message"),
    [
        ([(1, (10,), (1,))], 10, {}, r"shape \[10\] beyond its storage 0 of 10 values"),
        ([(0, (3, 5), (5, 1))], 10, {}, "beyond its storage"),
        ([(0, (2,), (10,))], 10, {}, "beyond its storage"),
        ([(0, (1 << 40,), (0,))], 10, {}, "beyond its storage"),
        ([(11, (0,), (1,))], 10, {}, "beyond its storage"),
        ([(-1, (2,), (1,))], 10, {}, "without a storage, a shape or strides"),
        ([(0, (2,), (-1,))], 10, {}, "without a storage, a shape or strides"),
        ([(0, (2, 2), (1,))], 10, {}, "without a storage, a shape or strides"),
        ([(0, (2.0,), (1,))], 10, {}, "without a storage, a shape or strides"),
        ([(0, (True,), (1,))], 10, {}, "without a storage, a shape or strides"),
        ([(0, (1 << 62,), (1,))], 10, {}, "without a storage, a shape or strides"),
        (GOOD, 11, {}, "has 40 bytes, and its pickle states 44"),
        (GOOD, -10, {}, "without a name or a size"),
        (GOOD, 10, {"key": "1"}, "storage 1 is missing"),
        (GOOD, 10, {"key": "../data.pkl"}, r"storage \.\./data\.pkl is missing"),
        (GOOD, 10, {"key": 0}, "without a name or a size"),
        (GOOD, 10, {"kind": torch.Tensor}, r"unknown type \(Tensor\)"),
        (GOOD, 10, {"kind": "FloatStorage"}, r"unknown type \(str\)"),
    ],
)
def test_lies_about_tensors_are_refused(tmp_path, views, n_values, storage, message):
    """Offsets, shapes and strides must be within the storage, and the storage in the file."""
    assert open_tensor_file(write_zip(tmp_path / "good.pt", _described(GOOD, 10))).content
    path = write_zip(tmp_path / "weights.pt", _described(views, n_values, **storage))
    with pytest.raises(WeightsError, match=message) as caught:
        open_tensor_file(path)
    assert str(caught.value).startswith(f"cannot read the weights at {path}: ")


def test_other_archives_are_refused(tmp_path):
    """Big-endian, compressed, TorchScript and other archives, each with its reason."""
    good, storage = _described(GOOD, 10), {"x/data/0": bytes(40)}
    packed = {"compression": zipfile.ZIP_DEFLATED}
    cases = {
        "big-endian machine": (good, storage | {"x/byteorder": b"big"}, {}),
        "is compressed": (good, storage, packed),
        "a TorchScript program": (good, storage | {"x/constants.pkl": b""}, {}),
        "two types": (_two_types(), storage, {}),
        "something else than a storage": (b"\x80\x02I1\nQ.", storage, {}),
        "a parameter without a tensor": (
            *(b"ctorch._utils\n_rebuild_parameter\n(I1\nI1\nNtR.", storage, {}),
        ),
        "a tensor of an unknown kind": (
            *(b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nI1\n)NtR.", storage, {}),
        ),
        r"TypeError": (b"ctorch._utils\n_rebuild_tensor_v2\n(I1\ntR.", storage, {}),
    }
    for message, (content, entries, options) in cases.items():
        path = write_zip(tmp_path / "weights.pt", content, entries, **options)
        with pytest.raises(WeightsError, match=message):
            open_tensor_file(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "text")
    with pytest.raises(WeightsError, match=r"with 0 data\.pkl"):
        open_tensor_file(path)


def test_an_archive_is_taken_as_its_directory_says_or_not_at_all(tmp_path, monkeypatch):
    """One pickle, no larger than that of a checkpoint, and entries where the directory has them."""
    good, storage = _described(GOOD, 10), {"x/data/0": bytes(40)}
    path = tmp_path / "weights.pt"
    write_zip(path, good, storage | {"y/data.pkl": good})
    with pytest.raises(WeightsError, match=r"with 2 data\.pkl; expected 1"):
        open_tensor_file(path)
    write_zip(path, good, storage)
    assert open_tensor_file(path).content
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("x/data/0").header_offset
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + b"QK" + whole[at + 2 :])
    with pytest.raises(WeightsError, match="x/data/0 is not where its directory says"):
        open_tensor_file(path)
    path.write_bytes(whole)
    monkeypatch.setattr(files, "_MAX_PICKLE_BYTES", len(good) - 1)
    with pytest.raises(WeightsError, match=r"x/data\.pkl is larger than those of checkpoints"):
        open_tensor_file(path)


def _two_types():
    file = io.BytesIO()
    parts = [(_Storage(10), 0, (1,), (1,)), (_Storage(10, kind=torch.IntStorage), 0, (1,), (1,))]
    _Pickler(file, legacy=False).dump([_Tensor(*part) for part in parts])
    return file.getvalue()


def test_other_old_files_are_refused(tmp_path):
    """Those of another version, of a big-endian machine, and with storages that do not fit."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    start = magic + pickle.dumps(1001, 2)
    little = pickle.dumps({"little_endian": True}, 2)
    body = _described(GOOD, 10, legacy=True)
    keys, data = pickle.dumps(["0"], 2), struct.pack("<q", 10) + bytes(40)
    path = tmp_path / "weights.pt"
    path.write_bytes(start + little + body + keys + data)
    file = open_tensor_file(path)
    assert file.read(file.content["t0"]).shape == (2, 5)
    cases = {
        "a pickle, and no file of PyTorch": pickle.dumps({"a": 1}, 2),
        "an unknown version": magic + pickle.dumps(1002, 2) + little + body + keys + data,
        "big-endian": start + pickle.dumps({"little_endian": False}, 2) + body + keys + data,
        "does not fit its pickle": start + little + body + pickle.dumps(["1"], 2) + data,
        "has 11 values": start + little + body + keys + struct.pack("<q", 11) + bytes(44),
        "ends after the end": start + little + body + keys + data[:-1],
        "storage 0 is missing": start + little + body + pickle.dumps([], 2) + data,
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=message) as caught:
            open_tensor_file(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"anything else", "neither a file of PyTorch nor of safetensors"),
        (b"a" * 257 + b"ustar", "PyTorch 0.1"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (struct.pack("<Q", 1 << 60) + b"{}", "header too large"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    """What is often found under the name of a checkpoint has a message of its own."""
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        open_tensor_file(path)
    assert "\n" not in str(caught.value)


def test_a_directory_is_a_weights_error(tmp_path):
    """The system's reason is in the message."""
    with pytest.raises(WeightsError, match="Is a directory"):
        open_tensor_file(tmp_path)


def test_safetensors_have_metadata_and_shapes(tmp_path):
    """JSON objects in the metadata are parsed, other texts stay; the file may have any name."""
    path = tmp_path / "weights.pt"
    expected = torch.randn(3, 4)
    metadata = {"format": "pt", "cfg": '{"task": {"normalize": true}}', "broken": "{"}
    save_file({"a": expected}, path, metadata=metadata)
    file = open_tensor_file(path)
    assert file.content["a"].shape == (3, 4)
    assert torch.equal(file.read(file.content["a"]), expected)
    assert file.settings == metadata | {"cfg": {"task": {"normalize": True}}}


def small_file(save):
    content = {f"layer.{i}": torch.randn(5, i) for i in range(1, 4)} | {"cfg": {"a": [1, "x"]}}
    return save(content), content


def read_all(path, names=None):
    """Return what a file holds, with its tensors read; only some names, or all."""
    file = open_tensor_file(path)
    content = file.content if isinstance(file.content, dict) else {}
    return {
        name: file.read(content[name]) if isinstance(content[name], StoredTensor) else content[name]
        for name in names or content
    }


def test_a_truncated_file_is_one_line(save):
    """Whatever the number of bytes that are left."""
    path, content = small_file(save)
    whole = path.read_bytes()
    for n_bytes in [*range(1, len(whole), 13), len(whole) - 1]:
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(WeightsError, match="cannot read the weights at") as caught:
            read_all(path, content)
        assert "\n" not in str(caught.value)


def outcome(path, names):
    """Return what a file holds, or the message of the error."""
    try:
        return read_all(path, names)
    except WeightsError as error:
        return str(error)


def damaged(whole, n_times, seed):
    """Yield copies with one flipped bit each."""
    chance = random.Random(seed)
    for _ in range(n_times):
        copy = bytearray(whole)
        copy[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        yield bytes(copy)


def test_flipped_bits_are_found_or_change_nothing(tmp_path):
    """In the format of 1.6, whose checksums cover the pickle and the tensors."""
    path = tmp_path / "weights.pt"
    content = small_file(lambda content: torch.save(content, path))[1]
    n_found = 0
    for copy in damaged(path.read_bytes(), 250, seed=1):
        path.write_bytes(copy)
        found = outcome(path, content)
        if isinstance(found, str):
            assert "\n" not in found
            n_found += 1
            continue
        for name, expected in content.items():
            is_tensor = isinstance(expected, torch.Tensor)
            assert torch.equal(found[name], expected) if is_tensor else found[name] == expected
    assert n_found > 60


def test_flipped_bits_of_an_old_file_raise_nothing_else(tmp_path):
    """The older format has no checksums, so damage may stay unknown."""
    path = tmp_path / "weights.pt"
    content = {f"layer.{i}": torch.randn(5, i) for i in range(1, 4)} | {"cfg": {"a": [1, "x"]}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    n_found = 0
    for copy in damaged(path.read_bytes(), 200, seed=2):
        path.write_bytes(copy)
        found = outcome(path, None)
        n_found += isinstance(found, str)
        assert "\n" not in str(found) or isinstance(found, dict)
    assert 20 < n_found < 200


def test_damaged_weights_without_a_recorded_checksum_are_read(tmp_path):
    """PyTorch can be told to write no checksums; such a file is not refused."""
    path = tmp_path / "weights.pt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5)}, path)
    finally:
        torch.serialization.set_crc32_options(before)
    file = open_tensor_file(path)
    assert file.read(file.content["a"]).tolist() == [0, 1, 2, 3, 4]
