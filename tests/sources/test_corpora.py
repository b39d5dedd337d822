"""The commands of docs/corpora.md, on small trees of the shape of each corpus."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import load_config, load_sweep_config
from pipeline.sources.base import Source
from pipeline.sources.opening import open_source
from tests.helpers.audio_files import speechlike, write

PAGE = (Path(__file__).parents[2] / "docs" / "corpora.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def common_voice(root: Path) -> None:
    header = "client_id\tpath\tsentence\tup_votes\tage\tgender\taccents\tlocale\n"
    for name, row in (("train", 0), ("dev", 1), ("test", 2), ("validated", 0)):
        clip = f"common_voice_en_{row}.mp3"
        write(root / "cv/en/clips" / clip)
        text(root / f"cv/en/{name}.tsv", f'{header}c{row}\t{clip}\tSay "{row}".\t2\t\t\t\ten\n')


def ljspeech(root: Path) -> None:
    lines = []
    for i in range(3):
        write(root / f"LJSpeech-1.1/wavs/LJ001-000{i}.wav", rate_hz=22_050)
        lines.append(f'LJ001-000{i}|"In {i}, one|"In {i}, one')
    text(root / "LJSpeech-1.1/metadata.csv", "\n".join(lines))


def librispeech(root: Path) -> None:
    for number, part in enumerate(("train-clean-100", "dev-clean", "test-clean")):
        chapter = f"84-12112{number}"
        folder = root / "LibriSpeech" / part / chapter.replace("-", "/")
        for i in range(2):
            write(folder / f"{chapter}-000{i}.flac")
        lines = (f"{chapter}-000{i} GO {i}\n" for i in range(2))
        text(folder / f"{chapter}.trans.txt", "".join(lines))
    text(root / "LibriSpeech/SPEAKERS.TXT", ";ID\n")


def vctk(root: Path) -> None:
    info = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS\n"
    for speaker in ("p225", "p226", "s5"):
        for number in (1, 2):
            stem = f"{speaker}_00{number}"
            for microphone in ("mic1", "mic2"):
                write(root / f"VCTK/wav48_silence_trimmed/{speaker}/{stem}_{microphone}.flac")
            if speaker != "s5":
                text(root / f"VCTK/txt/{speaker}/{stem}.txt", f"Call {number}.\n")
        info += f"{speaker}  23  F    English    Southern  England\n"
    text(root / "VCTK/speaker-info.txt", info)


def voxceleb1(root: Path) -> None:
    clips = [f"id1000{i}/video{i}/0000{k}.wav" for i in range(2) for k in range(3)]
    for clip in clips:
        write(root / "VoxCeleb1/wav" / clip)
    text(root / "iden_split.txt", "".join(f"{i % 3 + 1} {c}\n" for i, c in enumerate(clips)))
    text(root / "veri_test.txt", f"1 {clips[0]} {clips[1]}\n0 {clips[0]} {clips[3]}\n")


def speech_commands(root: Path) -> None:
    folder = root / "speech_commands_v0.01"
    for word in ("yes", "bed"):
        for speaker in ("aa", "bb", "cc"):
            write(folder / word / f"{speaker}_nohash_0.wav")
    write(folder / "_background_noise_" / "pink_noise.wav", speechlike(61 * 16_000))
    text(folder / "validation_list.txt", "yes/bb_nohash_0.wav\nbed/bb_nohash_0.wav\n")
    text(folder / "testing_list.txt", "yes/cc_nohash_0.wav\nbed/cc_nohash_0.wav\n")


def iemocap(root: Path) -> None:
    for session in (1, 2):
        folder = root / f"IEMOCAP_full_release/Session{session}"
        dialogue = f"Ses0{session}F_impro01"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n"]
        for turn, label in (("F000", "neu"), ("M001", "exc"), ("F001", "xxx")):
            write(folder / f"sentences/wav/{dialogue}/{dialogue}_{turn}.wav")
            lines.append(f"[6.2901 - 8.2357]\t{dialogue}_{turn}\t{label}\t[2.5, 2.5, 2.5]\n")
            lines.append("C-E2:\tNeutral;\t()\n")
        text(folder / f"dialog/EmoEvaluation/{dialogue}.txt", "\n".join(lines))


def fluent(root: Path) -> None:
    folder = root / "fluent_speech_commands_dataset"
    for i, name in enumerate(("train", "valid", "test")):
        clip = f"wavs/speakers/s{i}/{i}.wav"
        write(folder / clip)
        text(
            folder / f"data/{name}_data.csv",
            ",path,speakerId,transcription,action,object,location\n"
            f'0,{clip},s{i},"Turn on, please",activate,lights,none\n',
        )


CORPORA: dict[str, tuple[Callable[[Path], None], list[list[dict[str, object]]]]] = {
    "Common Voice": (
        common_voice,
        [
            [
                {"client_id": f"c{i}", "sentence": f'Say "{i}".', "split": split}
                for i, split in enumerate(("train", "dev", "test"))
            ]
        ],
    ),
    "LJSpeech": (ljspeech, [[{"text": f'"In {i}, one'} for i in range(3)]]),
    "LibriSpeech": (
        librispeech,
        [
            [
                {"split": part, "speaker": "84", "chapter": f"12112{number}"}
                for number, part in ((1, "dev-clean"), (2, "test-clean"), (0, "train-clean-100"))
                for _ in range(2)
            ],
            [
                {"split": part, "speaker": "84", "text": f"GO {i}"}
                for part in ("dev-clean", "test-clean", "train-clean-100")
                for i in range(2)
            ],
        ],
    ),
    "VCTK": (
        vctk,
        [
            [{"speaker": speaker} for speaker in ("p225", "p226", "s5") for _ in range(2)],
            [
                {"speaker": speaker, "text": f"Call {i}.", "gender": "F", "accent": "English"}
                for speaker in ("p225", "p226")
                for i in (1, 2)
            ],
        ],
    ),
    "VoxCeleb1": (
        voxceleb1,
        [
            [
                {"speaker": f"id1000{i}", "split": split}
                for i in range(2)
                for split in ("train", "dev", "test")
            ],
            [{"speaker": speaker} for speaker in ("id10000", "id10000", "id10001")],
        ],
    ),
    "Speech Commands": (
        speech_commands,
        [
            [
                *(
                    {"keyword": "_silence_", "split": split, "speaker": None}
                    for split, n in (("train", 48), ("dev", 6), ("test", 6))
                    for _ in range(n)
                ),
                *(
                    {"keyword": keyword, "split": split, "speaker": speaker}
                    for keyword in ("_unknown_", "yes")
                    for speaker, split in (("aa", "train"), ("bb", "dev"), ("cc", "test"))
                ),
            ]
        ],
    ),
    "IEMOCAP": (
        iemocap,
        [
            [
                {"emotion": emotion, "session": f"Session{i}", "speaker": f"0{i}{who}"}
                for i in (1, 2)
                for emotion, who in (("neutral", "F"), ("happy", "M"))
            ]
        ],
    ),
    "Fluent Speech Commands": (
        fluent,
        [
            [
                {"speakerId": f"s{i}", "action": "activate", "object": "lights", "split": split}
                for i, split in enumerate(("train_data", "valid_data", "test_data"))
            ]
        ],
    ),
}


def commands(section: str) -> list[str]:
    """The commands of a section: those of strata by themselves, others with all their lines."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S):
        for part in re.split(r"^(?=strata )", block, flags=re.M):
            found += [part] if part else []
    return found


def strata(command: str) -> list[str]:
    """The words after `strata` of a command on one line, or continued."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "strata"
    return words[1:]


def check_sweep(settings: list[str], source: Source) -> None:
    """The labels of the task are columns, and the splits that are named have rows."""
    config = load_sweep_config(settings)
    table = source.metadata(range(len(source)))
    labels = set(config.task.labels) & set(table.column_names)
    assert labels == set(config.task.labels) if config.task.slots else labels
    if config.split.speaker is not None:
        assert config.split.speaker in table.column_names
    is_given = config.split.folds is None and config.split.column == "auto"
    if is_given and "split" in table.column_names:
        values = set(table["split"].to_pylist())
        for names in (config.split.train, config.split.dev, config.split.test):
            assert values & set(names)


def test_every_corpus_of_the_page_is_tried() -> None:
    """And is in the list at its top."""
    assert list(SECTIONS) == list(CORPORA)
    listed = re.findall(r"^\| \[(.*?)\]\(#(.*?)\)", PAGE, re.M)
    assert listed == [(name, name.lower().replace(" ", "-")) for name in CORPORA]


@pytest.mark.parametrize("name", CORPORA)
def test_the_commands_of_the_page_read_the_corpus(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, in one folder: each plan has the rows and labels, and all audio exists."""
    make, expected = CORPORA[name]
    make(tmp_path)
    monkeypatch.chdir(tmp_path)
    sources: list[Source] = []
    for command in commands(SECTIONS[name]):
        if not command.startswith("strata"):
            subprocess.run(["bash", "-euc", command], cwd=tmp_path, check=True)
            continue
        verb, *settings = strata(command)
        if verb == "plan":
            sources.append(open_source(load_config(settings).dataset))
        else:
            assert verb == "sweep"
            check_sweep(settings[1:], sources[-1])
    assert len(sources) == len(expected)
    for source, rows in zip(sources, expected, strict=True):
        found = source.metadata(range(len(source))).to_pylist()
        assert [{key: row[key] for key in rows[0]} for row in found] == rows
        assert source.notes == ()
        for row in range(len(source)):
            path = source.segment(row).path
            assert path is not None
            assert Path(path).is_file()
