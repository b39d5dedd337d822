"""Give the product mutated sound files and tables, and count what it says about each.

Each file goes through the product's own path: the folder is listed and planned, each file decoded,
and some folders are extracted with the tiny encoder. A file may be read, read with a flag, or
quarantined with a reason. It is wrong if the process dies, hangs or needs much memory, or if sound
is missing without a flag: compared with the file before its mutation, and with FFmpeg where PyAV is
installed (`pip install av`). A table may be read as the standard library reads it, or refused.

Every file is made again by its seed and number: `fuzz.py --seed 1 --only 4711`.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fuzz_audio import FORMATS, MUTATIONS, Case, make_case
from fuzz_judge import READ, Judge, judge_table
from fuzz_tables import CLIPS, KINDS, TableCase, make_table
from fuzz_tables import MUTATIONS as TABLE_MUTATIONS

HERE = Path(__file__).parent
STEP_LIMIT_S = 90.0
"""Longest time for one file; a length that cannot be counted within 30 s is refused."""
PLAN_LIMIT_S = 900.0
BATCH = 2500


class Child:
    """A process that works on a list of files and may die or hang; it is then started again.

    Args:
        job: What it gets on its standard input.

    Attributes:
        printed: Lines that libraries have written to its standard output.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        environment = _environment() | {
            "HF_DATASETS_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(job["cache"]),
        }
        self.printed: list[str] = []
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with this object
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-c", "from fuzz_child import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job))
        self._process.stdin.close()

    def steps(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the name of each step with its result; the last one may have died or hung."""
        assert self._process.stdout is not None
        current, before = "", 0
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._process.stdout, selectors.EVENT_READ)
            while True:
                limit_s = PLAN_LIMIT_S if current in ("", "planned") else STEP_LIMIT_S
                if not waiting.select(limit_s):
                    self._process.kill()
                    self._process.wait()
                    yield current, {"died": f"no answer within {limit_s:.0f} s"}
                    return
                line = self._process.stdout.readline()
                if not line:
                    yield current, {"died": self._end()}
                    return
                if not line.startswith("{"):
                    self.printed.append(line.rstrip())
                    continue
                step = json.loads(line)
                if "end" in step:
                    self._process.wait()
                    return
                if "begin" in step:
                    current, before = step["begin"], step["rss"]
                else:
                    yield current, step | {"grown": step["rss"] - before}

    def _end(self) -> str:
        code = self._process.wait()
        self._log.seek(0)
        last = " | ".join(self._log.read().strip().splitlines()[-4:])[-300:]
        return f"{signal.Signals(-code).name if code < 0 else f'exit {code}'}: {last}"


class Reference:
    """FFmpeg's count of the samples of a file, from a process of its own."""

    def __init__(self) -> None:
        self.exists = find_spec("av") is not None
        self._process: subprocess.Popen[str] | None = None

    def decode(self, path: Path) -> dict[str, Any] | None:
        """Return what FFmpeg decodes; None if it cannot be asked or does not answer."""
        if not self.exists:
            return None
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from fuzz_reference import main; main()"],
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            answer = process.stdout.readline() if waiting.select(20) else ""
        if not answer:
            process.kill()
            process.wait()
            self._process = None
            return None
        return dict(json.loads(answer))


class Counts:
    """Results by a property of the files, as a table."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, collections.Counter[str]] = {}

    def add(self, name: str, result: str) -> None:
        """Count one file."""
        self.rows.setdefault(name, collections.Counter())[result] += 1

    def print(self, columns: tuple[str, ...]) -> None:
        """Print one line for each name, and the sum."""
        print(f"{self.title:24}" + "".join(f"{name:>13}" for name in ("tries", *columns)))
        total: collections.Counter[str] = collections.Counter()
        for name, counts in self.rows.items():
            total += counts
            _print_row(name, counts, columns)
        _print_row("all", total, columns)


def _print_row(name: str, counts: collections.Counter[str], columns: tuple[str, ...]) -> None:
    shown = (sum(counts.values()), *(counts[column] for column in columns))
    print(f"{name:24}" + "".join(f"{value:13,}" for value in shown))


class Campaign:
    """All files of one seed."""

    def __init__(self, options: argparse.Namespace, home: Path) -> None:
        self.options, self.home = options, home
        self.by_mutation, self.by_format = Counts("mutation"), Counts("format")
        self.tables = Counts("table")
        self.reference = Reference()
        self.judge = Judge()
        self.wrong: list[str] = []
        if not self.reference.exists:
            print("no independent decoder: `pip install av` compares lengths with FFmpeg's")

    def run_audio(self, numbers: list[int], extracted: bool) -> None:
        """Make, plan, decode and judge some files, in one folder; maybe extract it."""
        folder = self.home / "files"
        cases = {}
        for path in (folder, folder.with_name("decoded"), folder.with_name("store")):
            shutil.rmtree(path, ignore_errors=True)
        folder.with_name("decoded").mkdir(parents=True)
        folder.mkdir()
        for number in numbers:
            case = make_case(self.options.seed, number, self.options.source)
            cases[case.name] = case
            (folder / case.name).write_bytes(case.encoded)
        planned, found = self._decoded(folder, list(cases))
        for name, case in cases.items():
            reference = self.reference.decode(folder / name)
            result, why = self.judge.audio(
                case, found[name], planned.get(name), reference, folder.with_name("decoded")
            )
            self.by_mutation.add(case.mutation, result)
            self.by_format.add(case.format, result)
            self._note(result, why, case, folder / name)
            if self.options.only is not None:
                print(case.format, "|", case.mutation, "|", found[name], "| planned",
                      planned.get(name), "| FFmpeg", reference, "|", result, why)  # fmt: skip
        if extracted:
            self._extract(folder, found)

    def _decoded(
        self, folder: Path, names: list[str]
    ) -> tuple[dict[str, int], dict[str, dict[str, Any]]]:
        planned: dict[str, int] = {}
        found: dict[str, dict[str, Any]] = {}
        left, plan = names, True
        while left:
            job = self._job("audio", folder=str(folder), names=left, plan=plan)
            child = Child(job)
            for name, step in child.steps():
                if name == "planned" and "died" not in step:
                    planned = step["n_planned"]
                elif name == "planned":
                    self._wrong(f"plan of {names[0]} to {names[-1]}: {step['died']}")
                elif name == "":
                    raise SystemExit(f"the child did not start: {step}")
                else:
                    found[name] = step
            if child.printed:
                self._wrong(f"{names[0]} to {names[-1]}: on stdout {child.printed[:3]}")
            plan = False
            left = [name for name in names if name not in found]
        return planned, found

    def _extract(self, folder: Path, found: dict[str, dict[str, Any]]) -> None:
        """Extract the folder: each utterance must end as its decoding did."""
        [(_, step)] = Child(self._job("extract", folder=str(folder))).steps()
        if "flags" not in step or not step["ok"]:
            self._wrong(f"extraction of {sorted(found)[0]} …: {step}")
            return
        for name, decoded in found.items():
            if "n" in decoded:
                is_same = set(decoded["flags"]) <= set(step["flags"].get(name, ["?"]))
                # Too little sound for the encoder, or more than it takes, is found later.
                is_same = is_same or (
                    "?" not in step["flags"].get(name, []) and name in step["reasons"]
                )
            else:
                is_same = name in step["reasons"]
            if not is_same:
                self._wrong(f"extraction of {name}: {step['flags'].get(name)} after {decoded}")

    def run_tables(self, numbers: list[int]) -> None:
        """Make, open and judge some tables."""
        folder = self.home / "tables"
        shutil.rmtree(folder, ignore_errors=True)
        cases, items = {}, []
        for number in numbers:
            case = make_table(self.options.seed, number)
            home = folder / str(number)
            home.mkdir(parents=True)
            for clip in CLIPS:
                _write_clip(home / clip)
            kind, file, column = KINDS[case.kind]
            (home / file).write_bytes(case.content)
            path = home if kind == "audiofolder" else home / file
            items.append({"name": str(number), "kind": kind, "path": str(path), "column": column})
            cases[str(number)] = case
        while items:
            done = set()
            for name, step in Child(self._job("tables", items=items)).steps():
                if name == "":
                    raise SystemExit(f"the child did not start: {step}")
                done.add(name)
                self._judge_table(cases[name], step, folder / name)
            items = [item for item in items if item["name"] not in done]

    def _judge_table(self, case: TableCase, step: dict[str, Any], folder: Path) -> None:
        result, why = judge_table(case, step)
        self.tables.add(case.mutation, result)
        self._note(result, why, case, folder / KINDS[case.kind][1])
        if self.options.only_table is not None:
            print(case.kind, "|", case.mutation, "|", step, "|", result, why)

    def _job(self, kind: str, **more: Any) -> dict[str, Any]:
        return {"kind": kind, "cache": str(self.home / "cache"), **more}

    def _note(self, result: str, why: str, case: Case | TableCase, file: Path) -> None:
        if result != "wrong":
            return
        kind = case.format if isinstance(case, Case) else case.kind
        option = "--only" if isinstance(case, Case) else "--only-table"
        self._wrong(f"{option} {case.number} ({kind}, {case.mutation}): {why}")
        if self.options.keep is not None:
            self.options.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, self.options.keep / f"{case.number}-{file.name}")

    def _wrong(self, line: str) -> None:
        self.wrong.append(line)
        print("WRONG", line, flush=True)


def _environment() -> dict[str, str]:
    """Return variables with which a process finds the product and the campaign."""
    before = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(filter(None, (str(HERE.parent), str(HERE), before)))
    return os.environ | {"PYTHONPATH": path}


def _write_clip(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(range(256)) * 10)


def main() -> int:
    """Run the campaign; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=20_000, help="sound files")
    parser.add_argument("--tables", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first file and table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", type=Path, help="folder of speech; synthetic without it")
    parser.add_argument(
        "--extract-every", type=int, default=4, help="folders of 2,500 files; 0: none"
    )
    parser.add_argument("--keep", type=Path, help="folder for the files that are wrong")
    parser.add_argument("--only", type=int, help="number of the only sound file to try")
    parser.add_argument("--only-table", type=int, help="number of the only table to try")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strata-fuzz-") as home:
        campaign = Campaign(options, Path(home))
        if options.only is not None:
            campaign.run_audio([options.only], extracted=True)
        if options.only_table is not None:
            campaign.run_tables([options.only_table])
        if options.only is None and options.only_table is None:
            _run_all(campaign, options)
    print(f"wrong: {len(campaign.wrong)}")
    return min(1, len(campaign.wrong))


def _run_all(campaign: Campaign, options: argparse.Namespace) -> None:
    first = options.first
    for i, start in enumerate(range(first, first + options.files, BATCH)):
        numbers = list(range(start, min(start + BATCH, first + options.files)))
        every = options.extract_every
        campaign.run_audio(numbers, extracted=every > 0 and i % every == 0)
        print(f"{numbers[-1] + 1 - first:,} of {options.files:,} files", file=sys.stderr)
    for start in range(first, first + options.tables, BATCH):
        campaign.run_tables(list(range(start, min(start + BATCH, first + options.tables))))
    results = (READ, "flagged", "quarantined", "wrong")
    if options.files:
        campaign.by_mutation.rows = _ordered(campaign.by_mutation.rows, list(MUTATIONS))
        campaign.by_mutation.print(results)
        print()
        campaign.by_format.rows = _ordered(campaign.by_format.rows, list(FORMATS))
        campaign.by_format.print(results)
        print()
    if options.tables:
        campaign.tables.rows = _ordered(campaign.tables.rows, list(TABLE_MUTATIONS))
        campaign.tables.print((READ, "refused", "wrong"))


def _ordered(rows: dict[str, Any], names: list[str]) -> dict[str, Any]:
    return {name: rows[name] for name in names if name in rows}


if __name__ == "__main__":
    sys.exit(main())
