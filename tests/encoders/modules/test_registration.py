"""`register_encoder`: encoders made of torch modules, their identity, and what is refused."""

from __future__ import annotations

import importlib
import pickle
import sys
from functools import partial

import pytest
import torch
from torch import nn

import pipeline
from pipeline.config import ModelConfig, load_config
from pipeline.encoders.clips import encode_clips
from pipeline.encoders.modules.building import state_digest
from pipeline.encoders.modules.references import Reference, import_target
from pipeline.encoders.modules.registration import allow_target, find_module
from pipeline.encoders.registry import family_of
from pipeline.encoders.selfcheck import relative_errors
from pipeline.encoders.settings import resolve_settings
from pipeline.errors import ConfigError, EncoderError, IdentityError, WeightsError
from pipeline.extract import run
from pipeline.testing.checks import ENCODER_CHECKS, FAMILY_CHECKS, EncoderCase, FamilyCase
from tests.helpers import toy_modules
from tests.helpers.corpus import mixed_lengths, write_folder
from tests.helpers.toy_modules import DIM, LAYERS, Toy, make, make_attentive, make_other

TARGET = "tests.helpers.toy_modules"


def registered(factory=make, name="mine", **settings):
    """Register and load an encoder."""
    pipeline.register_encoder(name, factory, **({"layers": LAYERS} | settings))
    return pipeline.load_encoder(name, device="cpu")


@pytest.mark.parametrize(
    "settings",
    [{}, {"factory": make_attentive, "lengths_argument": "lengths"}, {"factory": make_attentive}],
    ids=["convolution", "padded", "attention"],
)
def test_it_keeps_the_contract_of_encoders(settings) -> None:
    """With clips that are padded, and with clips that run together only if they are alike."""
    pipeline.register_encoder("mine", **({"factory": make, "layers": LAYERS} | settings))
    model = ModelConfig("mine", source="module")
    family = FamilyCase(family_of(model), model)
    case = EncoderCase(family.loader()())
    for check in ENCODER_CHECKS:
        check(case)
    for check in FAMILY_CHECKS:
        check(family)


def test_features_are_those_of_the_module() -> None:
    """Each layer is the output of its submodule on the clip alone, in the order given."""
    layers = ["blocks.2", "blocks.0"]
    encoder = registered(make_attentive, layers=layers, lengths_argument="lengths")
    clips = [torch.randn(n) for n in (16_000, 8_000, 16_000, 15_000)]
    module = make_attentive()
    module.load_state_dict(encoder._runner._captured.module.state_dict())
    outputs = {}
    for name in ("blocks.0", "blocks.2"):
        module.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: outputs.update({name: out.detach()})
        )
    for clip, found in zip(clips, encoder(clips), strict=True):
        module(clip[None], torch.tensor([len(clip)]))
        expected = torch.cat([outputs["blocks.2"], outputs["blocks.0"]])
        assert relative_errors(found, expected).max() < 1e-5
    assert encoder.layer_names == ("blocks.2", "blocks.0")
    assert encoder.layers == (1, 2)


def test_the_identity_has_names_weights_and_version() -> None:
    """And it differs with each of them."""
    identity = registered(version="1").identity
    assert identity["model"] == "mine"
    assert identity["code"] == {"factory": f"{TARGET}:make", "version": "1"}
    assert identity["architecture"] == {"layers": list(LAYERS), "sample_rate_hz": 16_000}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert identity["weights"] == {"sha256": state_digest(make())}
    others = [
        registered(version="2").identity,
        registered(make_other, version="1").identity,
        registered(version="1", layers=LAYERS[:2]).identity,
        registered(version="1", layers=LAYERS[::-1]).identity,
        registered(version="1", inputs=as_they_are).identity,
        registered(version="1", outputs=same).identity,
        registered(version="1", sample_rate_hz=8_000).identity,
        registered(name="other", version="1").identity,
    ]
    assert all(other != identity for other in others)
    assert registered(version="1").identity == identity


def as_they_are(waveforms, lengths):
    return waveforms


def same(layer):
    return layer


def test_the_digest_has_every_type_and_shape() -> None:
    """Names, types, shapes, bytes; also of bfloat16, scalars, empty tensors and extra state."""

    def digest(**buffers):
        module = nn.Module()
        for name, tensor in buffers.items():
            module.register_buffer(name, tensor)
        return state_digest(module)

    zeros = torch.zeros(4)
    digests = [
        digest(a=zeros),
        digest(b=zeros),
        digest(a=zeros.bfloat16()),
        digest(a=zeros.half()),
        digest(a=zeros.reshape(2, 2)),
        digest(a=torch.tensor(0.0)),
        digest(a=torch.zeros(0)),
        digest(a=torch.tensor([0.0, 0.0, 0.0, 1e-45])),
    ]
    assert len(set(digests)) == len(digests)


def test_the_factory_is_seeded_and_must_repeat_its_weights() -> None:
    """Weights that torch draws are those of the seed; others are refused at the second call."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        state = torch.get_rng_state()
        first, second = registered(), registered()
        assert torch.equal(torch.get_rng_state(), state)
    assert first.identity == second.identity
    other = pipeline.load_encoder("mine", device="cpu", seed=1)
    assert other.identity["weights"] != first.identity["weights"]
    n_calls = iter(range(9))

    def changing():
        torch.manual_seed(next(n_calls))
        return Toy()

    with pytest.raises(WeightsError, match="gave other weights at its second call"):
        registered(changing)


def test_a_module_is_a_factory_of_itself() -> None:
    """It is copied: neither its mode nor its gradients change."""
    module = Toy().train()
    encoder = registered(module)
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert encoder.identity["code"]["factory"] == f"{TARGET}:Toy"


def test_a_worker_gets_the_definition_and_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled by name; the worker neither registers nor probes."""
    pipeline.register_encoder("mine", make, layers=LAYERS)
    model = ModelConfig("mine", source="module")
    family = family_of(model)
    settings = resolve_settings(family.describe(model), device="cpu")
    text = pickle.dumps(partial(family.load, model, settings))
    assert b"make" in text
    assert len(text) < 3_000
    for name in ("probe_module", "find_module"):
        monkeypatch.setattr(f"pipeline.encoders.modules.family.{name}", None, raising=False)
    encoder = pickle.loads(text)()
    assert encoder.identity["model"] == "mine"


def test_layers_of_two_sizes_go_into_two_stores() -> None:
    """A store has layers of one size; each size can be chosen."""

    class Growing(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.wide = nn.Linear(DIM, 2 * DIM)

        def forward(self, waveforms, lengths=None):
            return self.wide(super().forward(waveforms))

    pipeline.register_encoder("mine", Growing(), layers=["blocks.0", "blocks.1", "wide"])
    with pytest.raises(ConfigError, match="sizes"):
        pipeline.load_encoder("mine", device="cpu", layers=[1, 3])
    assert pipeline.load_encoder("mine", device="cpu", layers=[1, 2]).dim == DIM
    encoder = pipeline.load_encoder("mine", device="cpu", layers=["wide"])
    assert (encoder.dim, encoder.layers) == (2 * DIM, (3,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "a b"}, "the name of an encoder is 'a b'; expected letters"),
        ({"name": "../x"}, "the name of an encoder is '../x'; expected letters"),
        ({"name": "-x"}, "the name of an encoder is '-x'; expected letters"),
        ({"name": "12"}, "the name of an encoder is '12'; expected letters"),
        ({"name": "Null"}, "the name of an encoder is 'Null'; .* none of null, true"),
        ({"name": "hubert_base"}, "hubert_base is the name of a built-in model"),
        ({"layers": []}, r"layers of mine is \(\); expected names of submodules"),
        ({"layers": "blocks.0"}, "layers of mine is 'blocks.0'; expected names"),
        ({"layers": ["blocks.0", "blocks.0"]}, "names 'blocks.0' twice"),
        ({"layers": [1]}, "layers of mine has 1; expected names"),
        ({"axes": "DTB"}, "axes='DTB' is not one of"),
        ({"sample_rate_hz": 16e3}, "sample_rate_hz is 16000.0; expected"),
        ({"sample_rate_hz": True}, "sample_rate_hz is True; expected samples per second"),
        ({"sample_rate_hz": 0}, "sample_rate_hz is 0; expected samples per second"),
        ({"version": 2}, "version is 2; expected a text"),
        ({"geometry": (320, 400)}, r"geometry is \(320, 400\); expected a FrameGeometry"),
        (
            {"geometry": pipeline.FrameGeometry(8_000, 320, 400)},
            "geometry has 8000 Hz and sample_rate_hz is 16000",
        ),
        ({"inputs": as_they_are, "lengths_argument": "lengths"}, "have no use"),
        ({"inputs": nn.Identity()}, "inputs is a module, and its weights would be missing"),
        ({"outputs": nn.Identity()}, "outputs is a module, and its weights would be missing"),
        ({"factory": 3}, "factory is 3; expected a function, or a module"),
    ],
)
def test_wrong_arguments_are_refused_at_once(arguments, message) -> None:
    """The message names the argument, its value, and what was expected."""
    with pytest.raises(ConfigError, match=message):
        pipeline.register_encoder(
            **{"name": "mine", "factory": make, "layers": LAYERS, **arguments}
        )


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (toy_modules.make_number, "make_number returns an object of type int; expected a torch.nn"),
        (lambda: Toy, "returns a class; expected a torch.nn"),
        (
            toy_modules.make_nothing,
            "make_nothing failed: FileNotFoundError: no file encoder.pt;",
        ),
        (lambda: sys.exit(0), "failed: SystemExit: 0;"),
        (lambda: nn.LazyLinear(3), "has no values yet for weight"),
    ],
)
def test_a_factory_that_fails_is_one_line(factory, message) -> None:
    """With the type and the text of its exception."""
    with pytest.raises(EncoderError, match=message):
        registered(factory)


def test_unregistered_names_and_targets_are_refused() -> None:
    """By name with the nearest; a target without permission whatever it is."""
    registered()
    with pytest.raises(ConfigError, match=r"as 'mein' in this.*; did you mean mine"):
        find_module(ModelConfig("mein", source="module"))
    with pytest.raises(ConfigError, match=r"model=module needs model\.target"):
        find_module(ModelConfig(source="module"))
    model = ModelConfig(source="module", target=f"{TARGET}:make", layers=LAYERS)
    with pytest.raises(ConfigError, match="needs your permission: add --allow-code"):
        find_module(model)
    allow_target(model)
    assert find_module(model).definition.name == f"{TARGET}:make"
    with pytest.raises(ConfigError, match="needs your permission"):  # of this target only
        find_module(ModelConfig(source="module", target=f"{TARGET}:make_other", layers=LAYERS))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("toy", ConfigError, "model.target is 'toy'; expected PACKAGE.MODULE:FACTORY"),
        ("a-b:c", ConfigError, "expected PACKAGE.MODULE:FACTORY"),
        ("nothing_such.x:make", ConfigError, "there is no module 'nothing_such'"),
        (f"{TARGET}.py:make", ConfigError, f"there is no module .*did you mean {TARGET}:make"),
        (f"{TARGET}:mak", ConfigError, r"toy_modules.py\) has no 'mak'; did you mean make"),
        (f"{TARGET}:DIM", ConfigError, "factory is 8; expected a function"),
    ],
)
def test_wrong_targets_are_refused(target, error, message) -> None:
    """The message names the module, its file, and the nearest name."""
    with pytest.raises(error, match=message):
        allow_target(ModelConfig(source="module", target=target, layers=LAYERS))


def test_a_target_that_fails_on_import_is_one_line(tmp_path, monkeypatch) -> None:
    """Also if it lacks a module of its own, or ends the interpreter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name, text, message in (
        ("broken_a", "1 / 0", "importing broken_a failed: ZeroDivisionError: division by zero"),
        ("broken_b", "import nothing_such", "importing broken_b failed: ModuleNotFoundError"),
        ("broken_c", "raise SystemExit(3)", "importing broken_c failed: SystemExit: 3"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(EncoderError, match=message):
            allow_target(ModelConfig(source="module", target=f"{name}:make", layers=LAYERS))


def test_code_that_a_process_lacks_is_named(tmp_path, monkeypatch) -> None:
    """A worker may have another version of a module, without the function, or none."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_code.py").write_text("def make(): pass\n")
    module = importlib.import_module("own_code")
    sent = pickle.dumps(Reference(module.make))
    expected = r"own_code:make cannot be imported in this process \(.*; install the package on"
    monkeypatch.delattr(module, "make")
    with pytest.raises(EncoderError, match=expected):
        pickle.loads(sent).get()
    monkeypatch.setitem(sys.modules, "own_code", None)
    with pytest.raises(EncoderError, match=expected):
        pickle.loads(sent).get()


def test_a_folder_hides_no_installed_module(tmp_path, monkeypatch) -> None:
    """It is searched last, so a file in it does not run in place of a module of the same name."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (tmp_path / "colorsys.py").write_text("raise RuntimeError\n")
    (tmp_path / "own_colours.py").write_text("def make(): pass\n")
    assert callable(import_target("own_colours:make", str(tmp_path)))
    assert callable(import_target("colorsys:rgb_to_hsv", str(tmp_path)))


def test_a_definition_states_its_layers_itself() -> None:
    """`model.target` may name one; settings beside it are refused."""
    model = ModelConfig(source="module", target=f"{TARGET}:DEFINITION")
    allow_target(model)
    assert find_module(model).definition == toy_modules.DEFINITION
    with pytest.raises(ConfigError, match=r"model\.layers is stated by register_encoder"):
        allow_target(ModelConfig(source="module", target=f"{TARGET}:DEFINITION", layers=LAYERS))
    with pytest.raises(ConfigError, match=r"needs model\.layers"):
        allow_target(ModelConfig(source="module", target=f"{TARGET}:make"))


def test_a_registered_name_is_a_model_of_the_configuration() -> None:
    """`model=mine` is written out; an unknown name says how others are named."""
    pipeline.register_encoder("mine", make, layers=LAYERS)
    model = load_config(["model=mine", "dataset.path=x", "model.seed=3"]).model
    assert (model.source, model.name, model.seed) == ("module", "mine", 3)
    with pytest.raises(ConfigError, match=r"'mien'; did you mean mine.* model=module: docs/add_an"):
        load_config(["model=mien"])
    with pytest.raises(ConfigError, match=r"is model=hf model\.name=facebook/hubert-base"):
        load_config(["model=facebook/hubert-base"])


def test_a_store_is_resumed_only_with_the_same_version(tmp_path) -> None:
    """The difference is named; `pipeline.cached` and a store agree with the encoder."""
    write_folder(tmp_path / "clips", mixed_lengths(5))
    settings = [f"dataset.path={tmp_path}/clips", f"store={tmp_path}/store", "model=mine"]
    settings += ["engine=inline", "engine.threads=1", "extract.dtype=float32"]
    encoder = registered(version="1")
    assert run.extract(load_config(settings)).utterances_ok == 5
    store = pipeline.open_store(tmp_path / "store")
    assert store.layers == (1, 2, 3)
    waveform = torch.randn(5_000)
    with pipeline.cached(encoder, tmp_path / "cache", dtype="float32") as cache:
        [expected] = encode_clips(encoder, [waveform])
        assert torch.equal(cache("a", waveform), expected)
    registered(version="2")
    with pytest.raises(IdentityError, match="version"):
        run.extract(load_config(settings))


def test_a_clip_that_the_module_refuses_is_quarantined(tmp_path) -> None:
    """With the text of its exception; the others are extracted."""

    class Choosy(Toy):
        def forward(self, waveforms, lengths=None):
            if waveforms.shape[1] == 9_600:
                raise ValueError("not this clip")
            return super().forward(waveforms)

    write_folder(tmp_path / "clips", [0.2, 0.3, 0.4, 0.5, 0.6])
    pipeline.register_encoder("mine", Choosy(), layers=LAYERS)
    settings = [f"dataset.path={tmp_path}/clips", f"store={tmp_path}/store", "model=mine"]
    status = run.extract(load_config([*settings, "engine=inline", "engine.threads=1"]))
    assert (status.utterances_ok, status.utterances_quarantined) == (4, 1)
    [row] = pipeline.open_store(tmp_path / "store").quarantined.to_pylist()
    assert row["reason"] == "failed twice (ValueError: not this clip)"


def test_another_process_imports_the_factory_when_it_is_used(tmp_path, monkeypatch) -> None:
    """From the folder that it came from; if it is missing there, the error has its name."""
    folder = tmp_path / "own_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "models.py").write_text(
        "from tests.helpers.toy_modules import Toy\nclass Own(Toy): pass"
    )

    def forget():
        for name in ("own_package", "own_package.models"):
            sys.modules.pop(name, None)

    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        text = pickle.dumps(Reference(importlib.import_module("own_package.models").Own))
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        assert isinstance(pickle.loads(text).get()(), Toy)
    forget()
    (folder / "models.py").unlink()
    arrived = pickle.loads(text)
    assert arrived.name == "own_package.models:Own"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        with pytest.raises(EncoderError, match=r"Own cannot be imported in this .*PYTHONPATH"):
            arrived.get()
    forget()
