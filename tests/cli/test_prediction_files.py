"""Where predictions may be written, checked before the work."""

from __future__ import annotations

import pytest

from pipeline.cli.verbs.prediction_files import check_nist, check_out
from pipeline.errors import ConfigError


def test_a_folder_or_a_bucket_is_no_file_of_predictions(tmp_path):
    """Even with the suffix of a table; no file is asked for without `--out`."""
    folder = tmp_path / "a.csv"
    check_out(folder)
    check_out(None)
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"a\.csv: expected a file with the suffix \.csv"):
        check_out(folder)


@pytest.mark.parametrize("suffix", ["ctm", "rttm"])
def test_the_fields_of_a_line_have_no_white_space(tmp_path, suffix):
    """Nor are they empty: the line would have other fields. A table may have such names."""
    out = tmp_path / f"a.{suffix}"
    check_nist(out, "spans", ["a"], ["b"])
    for names, classes in ((["a b"], ["c"]), (["a"], [""]), ([""], ["c"]), (["a"], ["b\u00a0c"])):
        with pytest.raises(ConfigError, match=f"names in a {suffix.upper()} have no white space"):
            check_nist(out, "spans", names, classes)
        check_nist(tmp_path / "a.csv", "spans", names, classes)
    with pytest.raises(ConfigError, match="this head labels whole ones; give a file with"):
        check_nist(out, "utterance", ["a"], ["b"])
