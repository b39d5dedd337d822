"""The tables of docs/models.md are those that `campaigns/model_table.py` prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks.published_models import Published
from campaigns import model_table
from campaigns.model_table import GENERAL, PACKED, Row, measured_errors, short_names, table
from pipeline.encoders.general.architectures import KINDS
from pipeline.encoders.wav2vec2.conversion import configs

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
BOUNDS = {"packed": 1e-5, "general": 2e-5}


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "path"), [(PACKED, "packed"), (GENERAL, "general")])
def test_the_page_has_the_models_as_they_are_described(rows: list[Row], path: str) -> None:
    """Layers, sizes, rates, geometries, bytes and errors; an error is within its path's bound."""
    lines = list(table(rows, path))
    assert "\n" + "\n".join(lines) + "\n\n" in PAGE
    errors = [line.rstrip(" |").rpartition("| ")[2] for line in lines[2:]]
    assert [
        float(error) for error in errors if error != "small" and float(error) > BOUNDS[path]
    ] == []


def test_the_page_has_every_short_name() -> None:
    """With the sizes that `strata models` lists."""
    assert "\n" + "\n".join(short_names()) + "\n\n" in PAGE


def test_every_architecture_has_a_row() -> None:
    """A new `model_type` needs a checkpoint in the tables, or one of the same class."""
    types = {model_table.config_of(row).model_type for row in [*PACKED, *GENERAL]}
    same = {"parakeet_encoder", "parakeet_rnnt", "lasr_encoder", "omniasr"}
    assert types | same == {*KINDS, *configs.KINDS}


@pytest.mark.parametrize("heading", ["Models of the packed path", "General path"])
def test_the_encoder_page_has_every_architecture(heading: str) -> None:
    """The tables of docs/encoder.md have each `model_type` of their path, and no others."""
    section = model_table.ENCODER_PAGE.read_text().partition(f"\n## {heading}\n")[2]
    first_table = section.partition("| `model_type` |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in first_table.splitlines()[2:]]
    named = {name for cell in cells for name in re.findall(r"`([\w-]+)`", cell)}
    packed = set(configs.KINDS)
    both = {"wav2vec2-conformer"}
    assert named == (packed if heading.startswith("Models") else KINDS.keys() - packed | both)


def test_a_row_on_another_path_or_without_an_error_is_refused() -> None:
    """The tables cannot state what is not so."""
    hubert = Row(("hubert",), Published("HubertConfig"))
    with pytest.raises(ValueError, match="hubert runs on the packed path"):
        list(table([hubert], "general"))
    with pytest.raises(ValueError, match="has no error of nothing"):
        list(table([Row(("hubert",), Published("HubertConfig"), "nothing")], "packed"))


def test_errors_are_read_from_the_column_with_that_name(tmp_path: Path) -> None:
    """Other columns, other tables, and cells without a number are left out."""
    page = tmp_path / "encoder.md"
    page.write_text(
        "| model | clips | ours vs transformers | s |\n|---|---|---|---|\n"
        "| a | 12 | 3.5e-06 | 1 |\n| b | 12 | – | 1 |\n| c | 12 | 0 | 1 |\n\n"
        "| model | precision |\n|---|---|\n| d | 1e-3 |\n"
    )
    assert measured_errors(page) == {"a": "3.5e-06", "c": "0"}


def test_commands_on_the_page_name_models_of_the_tables() -> None:
    """A hub id in a command is one of a row."""
    known = {name for row in [*PACKED, *GENERAL] for name in row.ids}
    named = set(re.findall(r"model\.name=([\w.-]+/[\w.-]+)", PAGE))
    assert named
    assert named <= known
