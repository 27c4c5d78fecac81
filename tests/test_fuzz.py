"""Damaged bytes of every container: audio or one sentence, never another exception, a crash, a hang or a memory bomb.

``python tests/test_fuzz.py [--cases 2000] [--first N] [--keep DIR]`` runs more; what fails is kept in DIR and can be run
again by its number alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import gc
import io
import mmap
import os
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import hard_inputs
import numpy as np
import pytest

from bwe import audio
from bwe.errors import AudioError

MEMORY = 4 << 30
GROWTH_KB = 512 << 10
SECONDS = 20
FRAMES = 3_000
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF]


@dataclass(frozen=True)
class Failure:
    number: int
    container: str
    what: str
    file: Path


@functools.cache
def bases() -> dict[str, bytes]:
    """A small valid file of each container."""
    return {
        f"{name}-{channels}": hard_inputs.valid(name, channels, FRAMES)
        for name in hard_inputs.CONTAINERS
        for channels in ((1, 2) if name in ("wav", "flac", "ogg", "opus", "mp3", "m4a") else (1,))
    }


def case(number: int) -> tuple[str, bytes]:
    """The container and the damaged bytes of a case, the same on every run."""
    rng = np.random.default_rng((2, number))
    names = list(bases())
    name = names[number % len(names)]
    data = bytearray(bases()[name])
    for _ in range(int(rng.integers(1, 7))):
        if not data:
            break
        zone = rng.random()  # headers and, in MPEG-4 and ZIP-like formats, the index at the end decide most
        low, high = (0, 256) if zone < 0.6 else (len(data) - 1024, len(data)) if zone < 0.75 else (0, len(data))
        low, high = max(0, low), min(high, len(data))
        at, length = int(rng.integers(low, high)), int(2 ** rng.uniform(0, 9))
        match int(rng.integers(0, 9)):
            case 0:
                data[at] ^= 1 << int(rng.integers(8))
            case 1:
                data[at] = int(rng.integers(256))
            case 2:
                data[at : at + length] = bytes(len(data[at : at + length]))
            case 3:
                data[at : at + length] = b"\xff" * len(data[at : at + length])
            case 4:
                data[at:at] = rng.bytes(length)
            case 5:
                del data[at : at + length]
            case 6:
                data[at:at] = data[at : at + length]
            case 7:
                order, value = rng.choice(["<", ">"]), NUMBERS[int(rng.integers(len(NUMBERS)))]
                data[at : at + 4] = struct.pack(f"{order}I", value)
            case 8:
                if rng.random() < 0.3:
                    del data[at:]
                else:
                    other = bases()[names[int(rng.integers(len(names)))]]
                    start = int(rng.integers(len(other)))
                    data[at : at + length] = other[start : start + length]
    return name, bytes(data)


def read(path: Path, number: int) -> None:
    """Read a case the way its number says: by name or as a stream, strictly or salvaging."""
    kind = number // len(bases()) % 4
    try:
        salvage = kind in (1, 3)
        source: Path | io.BytesIO = io.BytesIO(path.read_bytes()) if kind > 1 else path
        with audio.Reader(source, salvage=salvage, nan="zero" if salvage else "refuse") as reader:
            for block in reader.blocks(4096):
                assert block.dtype == np.float32
                assert block.ndim == 2
                assert block.shape[0] == reader.info.channels
                assert 0 < block.shape[1] <= 4096
                assert np.isfinite(block).all()
            sentences = reader.warnings
    except AudioError as error:
        sentences = [str(error)]
    for sentence in sentences:
        assert sentence
        assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in sentence), repr(sentence)


def run(
    numbers: Sequence[int], folder: Path, read: Callable[[Path, int], None] = read, seconds: int = SECONDS
) -> list[Failure]:
    """Read the cases, as many as possible in one forked child; a child that dies names its case, and another goes on."""
    bases()
    gc.freeze()  # a collection in a child would copy every page of this process
    failures = []
    position = 0
    while position < len(numbers):
        shared = mmap.mmap(-1, 4096)
        report = folder / "report.txt"
        child = os.fork()
        if child == 0:
            _read_all(numbers[position:], folder, read, seconds, shared, report)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        done = int.from_bytes(shared[:8], "little")
        what = report.read_text(errors="replace") if report.exists() else ""
        report.unlink(missing_ok=True)
        position += done
        if code != 0:
            number = numbers[position]
            name, data = case(number)
            kept = folder / f"{number}.{name}"
            kept.write_bytes(data)
            if code < 0:
                what = f"ended by {signal.Signals(-code).name}"
            failures.append(Failure(number, name, what, kept))
            position += 1
    (folder / "case").unlink(missing_ok=True)
    return failures


def _read_all(
    numbers: Sequence[int], folder: Path, read: Callable[[Path, int], None], seconds: int, shared: mmap.mmap, report: Path
) -> NoReturn:
    """Child: stops at the first case that goes wrong; ``shared`` counts those that went well."""
    try:
        faulthandler.disable()
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard_inputs.limit_memory(MEMORY)
        said = os.open(folder / "said.txt", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
        os.unlink(folder / "said.txt")
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", write_through=True)
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        path = folder / "case"
        opened, peak = 0, 0
        for done, number in enumerate(numbers):
            shared[:8] = done.to_bytes(8, "little")
            path.write_bytes(case(number)[1])
            signal.alarm(seconds)
            read(path, number)
            signal.alarm(0)
            if size := os.fstat(said).st_size:
                raise AssertionError(f"printed {os.pread(said, min(size, 300), 0)!r}")
            # The first case may import, and open what it keeps.
            now, grown = len(os.listdir("/proc/self/fd")), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if done and now > opened:
                raise AssertionError(f"{now - opened} file descriptors were left open")
            if done and grown - peak > GROWTH_KB:
                raise AssertionError(f"took {(grown - peak) / 1024:.0f} MiB")
            opened, peak = now, grown
        shared[:8] = len(numbers).to_bytes(8, "little")
        os._exit(0)
    except BaseException:
        report.write_text(traceback.format_exc())
    finally:
        os._exit(70)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(200), id="200"),
        pytest.param(range(200, 2_000), id="2000", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
def test_damaged_files_give_audio_or_one_sentence(numbers: range, tmp_path: Path) -> None:
    pytest.importorskip("av")
    failures = run(numbers, tmp_path)
    assert not failures, "\n".join(f"case {f.number} ({f.container}): {f.what}" for f in failures)


def test_the_damage_is_real(tmp_path: Path) -> None:
    """About half of the cases must still get past the headers, else nothing behind them is tried."""
    pytest.importorskip("av")
    refused = 0
    for number in range(60):
        (tmp_path / "a").write_bytes(case(number)[1])
        try:
            audio.read(tmp_path / "a")
        except AudioError:
            refused += 1
    assert 20 <= refused <= 55
    assert case(17) == case(17) != case(17 + len(bases()))


def _raises(path: Path, number: int) -> None:
    raise struct.error("unpack requires a buffer of 8 bytes")


def _crashes(path: Path, number: int) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hangs(path: Path, number: int) -> None:
    while True:
        time.sleep(1)


def _prints(path: Path, number: int) -> None:
    os.write(2, b"[mpg123] warning")


def _leaks(path: Path, number: int) -> None:
    os.open(path, os.O_RDONLY)


def _swallows(path: Path, number: int) -> None:
    bytearray(8 << 30)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_raises, "struct.error"),
        (_crashes, "SIGSEGV"),
        (_hangs, "SIGALRM"),
        (_prints, r"printed b'\[mpg123"),
        (_leaks, "descriptors were left open"),
        (_swallows, "MemoryError"),
    ],
)
def test_a_fault_is_seen_and_the_other_cases_go_on(fault: Callable[[Path, int], None], said: str, tmp_path: Path) -> None:
    def reader(path: Path, number: int) -> None:
        with open(tmp_path / "seen", "a") as seen:
            seen.write(f"{number}\n")
        if number == 3:
            fault(path, number)

    (failure,) = run(range(1, 6), tmp_path, reader, seconds=1)
    assert failure.number == 3
    assert failure.file.read_bytes() == case(3)[1]
    assert re.search(said, failure.what)
    assert [int(line) for line in (tmp_path / "seen").read_text().split()] == [1, 2, 3, 4, 5]


def main() -> int:
    parser = argparse.ArgumentParser(description="Read damaged files of every container.")
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where to keep the files that fail (default: a new folder)")
    args = parser.parse_args()
    folder = args.keep or Path(tempfile.mkdtemp(prefix="bwe-fuzz-"))
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    failures = run(range(args.first, args.first + args.cases), folder)
    for failure in failures:
        print(f"case {failure.number} ({failure.container}), {failure.file}:\n{failure.what}")
    print(f"{args.cases} cases: {len(failures)} failed, {time.perf_counter() - started:.0f} s")
    if not args.keep and not failures:
        folder.rmdir()
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
