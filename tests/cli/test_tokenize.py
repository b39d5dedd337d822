"""`strata tokenize`: what it prints, and the settings that it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import strata
from tests.helpers.token_stores import LAYER, LENGTHS, K, clustered_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    clustered_store(tmp_path / "store")
    return tmp_path / "store"


def test_what_it_prints(store: Path) -> None:
    """Codebook, tokens and use of the codes on stdout, progress on stderr; then nothing to do."""
    done = strata("tokenize", str(store), f"layer={LAYER}", f"k={K}")
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\n", " ")
    assert (
        f"codebooks/layer2-k5.safetensors: layer 2, k=5, trained on {sum(LENGTHS)} frames" in text
    )
    assert f"tokens 'layer2-k5': {sum(LENGTHS)} frames in 3 units, 3 of them written now" in text
    assert "5 of 5 codes used; entropy 2.32 bits, perplexity 5.0" in text
    assert "3 units tokenized in" in done.stderr
    again = json.loads(strata("tokenize", str(store), "name=layer2-k5", "--json").stdout)
    assert (again["trained"], again["units_written"], again["quality"]) == (False, 0, None)
    assert (again["used_codes"], again["frames"]) == (5, sum(LENGTHS))


def test_weights_and_several_stores(store: Path, tmp_path: Path) -> None:
    """A list of weights in place of a layer; two stores get the same codebook."""
    clustered_store(tmp_path / "other", (33, 44), ids=["a", "b"])
    done = strata(
        *("tokenize", str(store), str(tmp_path / "other"), "weights=[0,1,0]", "k=5", "--json")
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["name"], answer["layer"], answer["units"]) == ("weighted-k5", None, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["layr=2", "k=5"], "unknown setting layr; did you mean layer"),
        (["layer=[1,2]", "k=5"], "expected one layer, such as 9"),
        (["layer=all", "k=5"], "expected one layer, such as 9"),
        (["layer=2", "k=0"], "k is 0; expected at least 1 and at most 65,535"),
        (["layer=2", "k=5", "sample_frames=some"], "sample_frames is 'some'; expected a whole"),
        (["layer=2", "k=5", "memory=lots"], "memory is 'lots'; expected"),
        (["layer=2"], "give the layer and the number of codes, as in layer=9 k=500"),
        (["layer=2", "k=5", "weights=average"], "layer= and weights= contradict each other"),
    ],
)
def test_wrong_settings(store: Path, settings: list[str], message: str) -> None:
    """A usage error that names the setting; nothing is written."""
    done = strata("tokenize", str(store), *settings)
    assert done.returncode == 2
    assert message in done.stderr.replace("\n", " ")
    assert not (store / "codebooks").exists()
