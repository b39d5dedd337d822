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


@pytest.fixture(scope="session")
def strata_encoder(request: pytest.FixtureRequest) -> Any:
    """What `--encoder` names, with its layers: see `suite.py`."""
    from pipeline.testing.loading import load_case

    layers = request.config.getoption("--encoder-layers")
    return load_case(request.config.getoption("--encoder"), layers.split(",") if layers else None)
