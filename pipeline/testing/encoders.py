"""Plugin for pytest that runs the conformance suite on an encoder of one's own.

    pytest -p pipeline.testing.encoders --encoder my_encoders.toy:TOY

TOY is a definition from `pipeline.register_encoder`; or a factory of a torch module, with
`--encoder-layers`; or a function that returns an `Encoder`. Its code is imported and called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

_SUITE = Path(__file__).with_name("suite.py")
_CASE = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("strata", "conformance suite of encoders (Strata)")
    group.addoption(
        "--encoder",
        metavar="MODULE:NAME",
        help="Check this encoder: a definition from pipeline.register_encoder, a factory of a "
        "torch module with --encoder-layers, or a function that returns an Encoder.",
    )
    group.addoption(
        "--encoder-layers",
        metavar="NAME,NAME",
        help="Names of the submodules whose outputs are the layers, for a factory.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Collect the suite, and nothing else, if an encoder is given."""
    if config.getoption("--encoder"):
        config.args[:] = [str(_SUITE)]


def pytest_sessionstart(session: pytest.Session) -> None:
    """Load the encoder once, before the tests.

    Raises:
        pytest.UsageError: It cannot be loaded, of which no check would say more.
    """
    config = session.config
    target, layers = config.getoption("--encoder"), config.getoption("--encoder-layers")
    if not target or config.getoption("--collect-only"):
        return
    from pipeline.errors import StrataError
    from pipeline.testing.loading import load_case

    try:
        config.stash[_CASE] = load_case(target, layers.split(",") if layers else None)
    except StrataError as error:
        message = str(error).replace("model.target", "--encoder")
        raise pytest.UsageError(message.replace("model.layers", "--encoder-layers")) from error


@pytest.fixture(scope="session")
def strata_encoder(request: pytest.FixtureRequest) -> Any:
    """What `--encoder` names, with its layers: see `suite.py`."""
    return request.config.stash[_CASE]
