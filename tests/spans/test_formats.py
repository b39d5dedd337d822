"""Each format of spans against files that are written by hand here, and what is refused."""

from __future__ import annotations

import gzip
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, SourceError
from pipeline.spans.reading import read_spans, without_labels
from pipeline.spans.table import Spans

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0 ! a comment, with 5 in it
xmax = 1.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "hello, ""you"" xmin = 3"
        intervals [2]:
            xmin = 0.5
            xmax = 1
            text = ""
        intervals [3]:
            xmin = 1
            xmax = 1.5
            text = "ɪ!
two"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.7
            mark = "x"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.5
        intervals: size = 1
        intervals [1]:
            xmin = 0.25
            xmax = 1.25
            text = "sil"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
3
"IntervalTier"
"words"
0
1.5
3
0
0.5
"hello, ""you"" xmin = 3"
0.5
1
""
1
1.5
"ɪ!
two"
"TextTier"
"clicks"
0
1.5
1
0.7
"x"
"IntervalTier"
"phones"
0
1.5
1
0.25
1.25
"sil"
"""
ONE_LINE = SHORT.replace("ɪ!\ntwo", "\0").replace("\n", " ").replace("\0", "ɪ!\ntwo")
WORDS = [
    ("clip", 0, 0.5, 'hello, "you" xmin = 3'),
    ("clip", 0.5, 1, ""),
    ("clip", 1, 1.5, "ɪ!\ntwo"),
]
FORMS = {"long": LONG, "short": SHORT, "one line": ONE_LINE}


def written(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def refused(path, words, kind=SourceError, **settings):
    """Check that a file is refused with a message that has `words`."""
    with pytest.raises(kind, match=re.escape(words)) as caught:
        read_spans(path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_forms_of_a_textgrid_are_the_same(tmp_path, form, encoding, end):
    """The long and the short form, in each encoding and with each line end, give one table."""
    path = written(tmp_path, "clip.TextGrid", FORMS[form].replace("\n", end), encoding)
    assert list(read_spans(path, tier="words")) == WORDS


def test_a_folder_of_textgrids_has_ids_of_paths(tmp_path):
    """Each file is of the utterance of its path within the folder, in any mix of encodings."""
    written(tmp_path, "b/x.y.TextGrid", LONG, "utf-16")
    written(tmp_path, "a.textgrid", SHORT, "utf-8-sig")
    written(tmp_path, "notes.txt", "nothing")
    spans = read_spans(tmp_path, tier="phones")
    assert list(spans) == [("a", 0.25, 1.25, "sil"), ("b/x.y", 0.25, 1.25, "sil")]
    assert spans.where(1) == f"{tmp_path}/b/x.y.TextGrid, line 44"
    both = read_spans(tmp_path / "b", tier=["words", "phones"])
    assert [span.label for span in both][2:] == ["ɪ!\ntwo", "sil"]


def test_the_tier_is_chosen_by_name_and_never_guessed(tmp_path):
    """Several tiers, an unknown name and a tier of points are refused with the tiers there are."""
    path = written(tmp_path, "clip.TextGrid", LONG)
    tiers = "its interval tiers are 'words', 'phones'"
    refused(path, f"has 2 interval tiers: {tiers}; give tier=NAME")
    refused(path, f"has no tier 'word'; {tiers}; did you mean words?", tier="word")
    refused(path, f"tier 'clicks' has points, which have no length; {tiers}", tier="clicks")
    words = SHORT[: SHORT.index('"TextTier"')].replace("<exists>\n3", "<exists>\n1")
    assert list(read_spans(written(tmp_path, "clip.TextGrid", words))) == WORDS
    twice = LONG.replace('"phones"', '"words"')
    refused(written(tmp_path, "b.TextGrid", twice), "has 2 tiers 'words'; rename", tier="words")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('            text = "sil"\n', "", "ends after line 45; expected the text of an interval"),
        (
            "xmax = 1.25",
            "xmax = nan",
            "line 45: the end of an interval is 'nan'; expected a number",
        ),
        ("xmax = 1.25", "xmax = 0.2", "line 44: the span 'sil' of 'clip' ends before it starts"),
        ("xmin = 0.25", "xmin = -2", "line 44: the span 'sil' of 'clip' starts before its"),
        ("xmin = 0.25", "xmin =", "line 46: found 'sil'; expected the end of an interval"),
        ("intervals: size = 3", "intervals: size = 2", "line 24: found '1'; expected the class of"),
        ("size = 3\nitem", "size = 2\nitem", "line 38: 'IntervalTier' comes after the last"),
        ('"sil"', '"sil', "line 46: a quotation mark is opened and not closed"),
        ('"TextGrid"', '"PitchTier"', "line 2: found 'PitchTier'; expected a TextGrid"),
        ('"ooTextFile"', '"Praat chronological TextGrid text file"', "is a chronological TextGrid"),
        (LONG, "", "is empty"),
        (LONG, "ooBinaryFile\x08TextGrid", "is a binary TextGrid; in Praat save it as text"),
    ],
)
def test_a_damaged_textgrid_is_refused_with_its_line(tmp_path, old, new, words):
    """Nothing is dropped in silence: a cut file, a wrong size, and times that are none."""
    assert old in LONG
    refused(written(tmp_path, "clip.TextGrid", LONG.replace(old, new, 1)), words, tier="phones")


def test_text_of_another_encoding_is_refused_with_its_line(tmp_path):
    """It can be read by naming the encoding."""
    path = written(tmp_path, "clip.TextGrid", LONG.replace("ɪ", "é"), "latin-1")
    refused(path, "line 26 is not utf-8: invalid continuation byte", tier="words")
    assert read_spans(path, tier="words", encoding="latin-1")[2].label == "é!\ntwo"
    refused(path, "encoding is 'latin-77'", ConfigError, tier="words", encoding="latin-77")


KALDI = "utt-1 1 0.00 0.25 HELLO\nutt-1 1 0.25 0.5 WORLD 0.97\n"
NEMO = "utt-1 1 0.00 0.25 HELLO NA lex NA\nutt-1 1 0.25 0.5 WORLD NA lex NA\n"


@pytest.mark.parametrize("text", [KALDI, NEMO, ";; a comment\n\n" + KALDI.replace("\n", "\r\n")])
@pytest.mark.parametrize("name", ["a.ctm", "ctm", "a.CTM.gz"])
def test_ctm_of_kaldi_and_of_nemo(tmp_path, text, name):
    """Start and duration become start and end."""
    data = gzip.compress(text.encode()) if name.endswith("gz") else text
    path = written(tmp_path, name, data)
    if name == "a.CTM.gz":
        path = path.rename(tmp_path / "a.ctm.gz")
    assert list(read_spans(path)) == [("utt-1", 0, 0.25, "HELLO"), ("utt-1", 0.25, 0.75, "WORLD")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("u 1 0.5 x", "line 2 has 4 fields; a CTM has utterance, channel, start"),
        ("u 1 0.5 1 two words NA lex NA x", "line 2 has 10 fields; a CTM has utterance"),
        ("u 1 x 0.5 y", "line 2: the start is 'x'; expected a number"),
        ("u 1 0,5 0.5 y", "the start is '0,5'; expected a number; write a point, not a comma"),
        ("u 1 nan 0.5 y", "line 2: the start is 'nan'; expected a number"),
        ("u 1 0.5 -0.5 y", "line 2: the duration is -0.5; expected at least 0"),
        ("u 1 -1 0.5 y", "line 2: the span 'y' of 'u' starts before its utterance: -1 to -0.5"),
        ("u 1 * * <ALT_BEGIN>", "line 2: <ALT_BEGIN> begins or ends alternatives"),
        ("u 1 0 1 a", "line 2 repeats "),
        ("u 2 0.5 1 b", "line 2: 'u' has channel '2', and '1' in "),
    ],
)
def test_a_wrong_line_of_a_ctm_is_refused(tmp_path, line, words):
    """The message names the line and the value."""
    refused(written(tmp_path, "a.ctm", f"u 1 0 1 a\n{line}\n"), words)


def test_one_channel_of_a_ctm_is_chosen(tmp_path):
    """Lines of other channels are counted in a note; a channel that no line has is refused."""
    path = written(tmp_path, "a.ctm", "u A 0 1 a\nu B 0 1 b\nu B 1 1 c\n")
    spans = read_spans(path, channel="B")
    assert [span.label for span in spans] == ["b", "c"]
    assert spans.notes == (f"{path}: 1 line of other channels than B left out",)
    refused(path, "has no line of channel '1'; leave channel out", channel="1")


def test_rttm_has_turns_that_may_overlap(tmp_path):
    """Only SPEAKER lines are turns; the others are counted in a note."""
    text = (
        "SPKR-INFO rec 1 <NA> <NA> <NA> unknown ann <NA> <NA>\n"
        "SPEAKER rec 1 0.5 1.0 <NA> <NA> ann <NA> <NA>\n"
        "SPEAKER rec 1 1.25 1.0 <NA> <NA> bob <NA>\n"
    )
    path = written(tmp_path, "a.rttm", text)
    spans = read_spans(path)
    assert list(spans) == [("rec", 0.5, 1.5, "ann"), ("rec", 1.25, 2.25, "bob")]
    assert spans.notes == (f"{path}: 1 line of other types than SPEAKER left out: SPKR-INFO",)
    refused(written(tmp_path, "b.rttm", text + "rec 1 0 1\n"), "line 4 begins with 'rec'; expected")
    refused(written(tmp_path, "c.rttm", "SPEAKER a 1 0 1\n"), "line 1 has 5 fields; an RTTM has")
    more = text.replace("ann <NA>", "ann lee of <NA>", 2)
    refused(written(tmp_path, "d.rttm", more), "line 2 has 12 fields; an RTTM has SPEAKER")


ROWS = [("a/1.wav", 0.5, 1.0, "x, y"), ("a/1.wav", 1.0, 1.5, ""), ("12", 0.0, 2.0, 'say "so"')]


@pytest.mark.parametrize(
    ("header", "scale", "settings"),
    [
        ("id,start,end,label", 1, {}),
        ("utt_id,start_s,stop_s,phone", 1, {}),
        ("Utterance,Begin,End,Text", 1, {}),
        ("file_name,onset,offset,event", 1, {}),
        ("id,start_ms,end_ms,label", 1000, {}),
        ("id,start,end,label", 1000, {"unit": "ms"}),
        ("id,start,end,label", 8000, {"unit": "samples", "sample_rate_hz": 8000}),
        ("id,start_sample,end_sample,word", 8000, {"sample_rate_hz": 8000}),
        (
            "a,b,c,d",
            1,
            dict(
                zip(
                    ("id_column", "start_column", "stop_column", "label_column"),
                    "abcd",
                    strict=True,
                )
            ),
        ),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_tables_have_the_column_names_that_people_use(tmp_path, kind, header, scale, settings):
    """So do csv, tsv, jsonl and parquet; the unit is that of the names or as stated."""
    names = header.split(",")
    rows = [(row[0], row[1] * scale, row[2] * scale, row[3]) for row in ROWS]
    path = tmp_path / f"spans.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), path)
    elif kind == "jsonl":
        import json

        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        written(tmp_path, path.name, "\n".join(lines))
    else:
        import csv
        import io

        out = io.StringIO()
        if kind == "csv":
            csv.writer(out).writerows([names, *rows])
        else:
            out.write("".join("\t".join(map(str, row)) + "\n" for row in [names, *rows]))
        written(tmp_path, path.name, out.getvalue(), "utf-8-sig")
    assert list(read_spans(path, **settings)) == ROWS


def test_spans_that_differ_in_one_value_are_not_repeated(tmp_path):
    """Utterance, start, end and label together make a span."""
    rows = ["a,0,1,x", "b,0,1,x", "a,0.5,1,x", "a,0,2,x", "a,0,1,y"]
    path = written(tmp_path, "a.csv", "\n".join(["id,start,end,label", *rows]))
    assert len(read_spans(path)) == 5


def test_a_table_may_have_durations_and_one_label_for_all(tmp_path):
    """NeMo's offset is a start; `label` names the spans of a table without labels."""
    path = written(tmp_path, "a.csv", "audio_filepath,offset,duration\nx,0.5,0.25\n")
    assert list(read_spans(path, label="speech")) == [("x", 0.5, 0.75, "speech")]
    refused(path, "line 1 has no column of a usual name for the label", label=None)


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        ("", {}, "is empty"),
        ("id,start,end,label\n", {}, "has no spans"),
        ("id,start,label\na,0,x\n", {}, "has no column of a usual name for the stop; its columns"),
        ("id,start,end,word,phone\na,0,1,x,y\n", {}, "has the columns word, phone, any of which"),
        ("id,start,end,label\na,0,1\n", {}, "line 2 has fewer fields than the header: 3, not 4"),
        ("id,start,end,label\na,0,1,x,y\n", {}, "more fields than the header: 5, not 4; put"),
        ('id,start,end,label\na,0,1,"x\n', {}, "line 2 cannot be read"),
        ("id,start,end,label\n,0,1,x\n", {}, "line 2: id is ''; expected text"),
        ("id,start,end,label\na,0,,x\n", {}, "line 2: the end is ''; expected a number"),
        ("id,start,end,label\n\na,0,1,x\na,2,1,x\n", {}, "line 4: the span 'x' of 'a' ends before"),
        ("id,start,end,label\na,0,1,x\nb,0,1,x\na,0,1,x\n", {}, "line 4 repeats"),
        ("id,start_sample,end_sample,label\na,0,1,x\n", {}, "are in samples; give sample_rate_hz"),
        ("id,start_ms,end_s,label\na,0,1,x\n", {}, "state different units; give unit=s"),
        ("id,start,end,label\na,0,1,x\n", {"label_column": "labell"}, "did you mean label?"),
        ("id,start,end,label\na,0,1,x\n", {"unit": "sec"}, "unit is 'sec'"),
        ("id,start,end,label\na,0,1,x\n", {"tier": "words"}, "tier: of no use for spans of kind"),
        (
            "id,start,end,label\na,0,1,x\n",
            {"skip": ["x"]},
            "all spans have a label that is skipped",
        ),
        ("id,start,end,label\na,0,1,x\n", {"id_form": "{idd}"}, "id_form is '{idd}' ('idd')"),
        ("id,start,end,label\na,0,1,x\n", {"id_form": "x"}, "all ids would be the same"),
        ("id,start,end,label,x,x\na,0,1,x,1,2\n", {}, "line 1 has several columns 'x'"),
        (
            'id,start,end,label\na,0,1,x\na,1,2,"\na,2,3,y\na,3,4,z"\n',
            {},
            "line 3: the value '\\na,2,3,y\\na,3,4,z' has a line break, so that it may",
        ),
        (
            'id,label,start,end\na,"x,0,1\na,y",1,2\n',
            {},
            "line 2: the value 'x,0,1\\na,y' has a line break, so that it may",
        ),
        ("id,start,duration,label\na,1,-1,x\n", {}, "line 2: duration is -1; expected at least 0"),
        (
            "id,start,end,label\na,0,1,x\n",
            {"label": "x", "label_column": "label"},
            "give label or label_column, not both",
        ),
        (
            "id,start,end,dur,label\na,0,1,1,x\n",
            {"stop_column": "end", "duration_column": "dur"},
            "give stop_column or duration_column, not both",
        ),
        (
            "id,start,end,label\na,0,1,x\n",
            {"unit": "samples", "sample_rate_hz": -8000.0},
            "sample_rate_hz is -8000.0; expected a rate above 0",
        ),
        (
            "id,start,end,label\na,0,1,x\n",
            {"unit": "ms", "sample_rate_hz": 8000.0},
            "sample_rate_hz is for unit=samples, and unit is ms",
        ),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, settings, words):
    """The message names the line, the value and the remedy."""
    path = written(tmp_path, "a.csv", text)
    refused(path, words, (SourceError, ConfigError), **settings)


def test_a_label_of_a_csv_may_have_several_lines(tmp_path):
    """Unless it has a time, as the rows that an open quotation mark swallows have."""
    text = 'id,start,end,label\na,0,1,"well, then\nfive, at 6\n..."\na,1,2,y\n'
    spans = list(read_spans(written(tmp_path, "s.csv", text)))
    assert spans == [("a", 0, 1, "well, then\nfive, at 6\n..."), ("a", 1, 2, "y")]


def test_wrong_objects_and_files_are_refused(tmp_path):
    """Lines that are no JSON objects, values of other types, and files that are no tables."""
    head = '{"id": "a", "start": 0, "end": 1, "label": "x"}\n'
    for line, words in (
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object, but [1]"),
        ('{"id": "a", "start": true, "end": 1, "label": "x"}', "line 2: start is True; expected a"),
        ('{"id": "a", "start": NaN, "end": 1, "label": "x"}', "line 2: start is nan; expected a"),
        ('{"id": "a", "end": 1, "label": "x"}', "line 2: start is None; expected a number"),
    ):
        refused(written(tmp_path, "a.jsonl", head + line), words)
    refused(written(tmp_path, "a.parquet", "no table"), "a.parquet cannot be read")
    refused(tmp_path / "b.csv", "no file or folder of spans at")
    refused(written(tmp_path, "c.txt", "x"), "does not tell its kind; give kind=", ConfigError)
    refused(tmp_path, "has files of several kinds (1 jsonl, 1 parquet); give kind=NAME")
    refused("s3://bucket/a.csv", "expected a path of this machine", ConfigError)
    os.mkfifo(tmp_path / "pipe.csv")  # nothing waits for a writer
    refused(tmp_path / "pipe.csv", "pipe.csv is not a regular file; save the table as a file")


def test_labels_are_skipped_and_ids_are_made(tmp_path):
    """Spans left out are counted; ids are made of the id, its stem or its name."""
    text = "id,start,end,label\na/b.c.wav,0,1,sil\na/b.c.wav,1,2,x\nd.wav,0,1,sil\n"
    path = written(tmp_path, "a.csv", text)
    spans = read_spans(path, skip=["sil", "sp"])
    assert list(spans) == [("a/b.c.wav", 1, 2, "x")]
    assert spans.notes == ("2 of 3 spans left out by label: 'sil'",)
    assert "d.wav" in spans.utterances  # labelled, as all silence
    for form, made in (("{id}.x", "a/b.c.wav.x"), ("{stem}", "a/b.c"), ("u-{name}", "u-b.c")):
        assert read_spans(path, id_form=form)[0].id == made


def test_the_digest_is_that_of_the_spans(tmp_path):
    """It changes with an id, a time or a label, and not with the file or its format."""
    base = [("a", 0.0, 1.0, "x"), ("b", 1.0, 2.0, "y")]
    texts = {}
    for number, (field, value) in enumerate([(0, "c"), (1, 0.5), (2, 1.25), (3, "z")]):
        row = list(base[0])
        row[field] = value
        texts[f"{number}.csv"] = [tuple(row), base[1]]
    digests = set()
    for name, rows in {"base.csv": base, **texts}.items():
        lines = ["id,start,end,label", *(",".join(map(str, row)) for row in rows)]
        digests.add(read_spans(written(tmp_path, name, "\n".join(lines))).digest)
    assert len(digests) == 5
    ctm = written(tmp_path, "base.ctm", "a 1 0 1 x\nb 1 1 1 y\n")
    assert read_spans(ctm).digest in digests


def test_spans_that_are_all_left_out_by_label_are_refused():
    """A selection that is empty before has lost none to its labels."""
    only = Spans.of(["a"], [0.0], [0.1], ["SIL"])
    empty = only.take(np.array([], np.int64))
    assert without_labels(empty, "x.csv", ["sil"]) is empty
    assert len(without_labels(only, "x.csv", ["sil"])) == 1
    with pytest.raises(SourceError, match=r"x.csv: all spans have a label that is skipped: 1 of"):
        without_labels(only, "x.csv", ["sil"], ignore_case=True)
