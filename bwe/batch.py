"""Many files in one run: `plan` says what becomes what, `run` does it, in this process or as a Ray Data job.

Both ways of running share the planning, the rules for existing outputs, the table of results and the account at the
end. An output appears under its name only when it is complete (`audio.Writer`), so a run that was killed is taken up
again with ``skip_existing``: nothing is lost and nothing is done twice.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import logging
import os
import platform
import shutil
import string
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from bwe import __version__, audio, dsp, hub, infer
from bwe.errors import OUT_OF_MEMORY, AudioError, BweError, ConfigError, OutputError, is_out_of_memory

NAME = "{stem}.bwe.{ext}"
FORMATS = ("wav", "flac", "mp3", "ogg", "opus")

Progress = Callable[[float, float], None]
Status = Literal["done", "left alone", "skipped", "failed", "planned"]
Work = Generator[tuple[int, "Outcome"], None, None]

# A file with one of these names that does not open is a damaged recording and must be told; any other is simply not audio.
_AUDIO_SUFFIXES = {
    ".wav", ".wave", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aiff", ".aif", ".caf", ".w64", ".rf64", ".au", ".snd",
    ".m4a", ".m4b", ".aac", ".ac3", ".amr", ".wma", ".3gp",
}  # fmt: skip
_LOSSY_SLACK_SECONDS = 0.1
_FLAC_RATIO = 0.6  # of PCM, for speech and music at 48 kHz
_LOSSY_BYTES_PER_SECOND = 40_000
_SAMPLE_BYTES = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
_NAMES_SHOWN = 10
_RAY_BLOCKS = 10_000
_RAY_RETRIES = 3
_RAY_STORE_BYTES = 128 << 20
# What keeps a local Ray off the network: no usage report, the loopback interface, and a proxy that nobody answers at,
# because its service processes ask the well-known addresses of three clouds whether they run there.
_RAY_OFFLINE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "http_proxy": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "no_proxy": "localhost,127.0.0.1",
}
_RAY_REMOTE = {
    "RAY_NUM_REDIS_GET_RETRIES": "1"
}  # of 45 s each; Ray's 20 are a quarter of an hour before a dead address is told


@dataclass(frozen=True)
class Job:
    """One file to extend.

    Attributes:
        source, target: from where to where.
        sample_rate: of the target, in Hz.
        cutoff: where its known band ends, in Hz, as the manifest says; None leaves it to the settings.
        info: what the source declares; None where it could not be opened, which the run will tell.
        make_folders: whether missing folders of the target are made.
    """

    source: Path
    target: Path
    sample_rate: int
    cutoff: float | None = None
    info: audio.Info | None = None
    make_folders: bool = False

    @property
    def seconds(self) -> float:
        """Declared duration; 0 where the source could not be opened."""
        return self.info.seconds if self.info else 0.0


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        jobs: in a fixed order, each with a target of its own.
        ignored: files in folders that are no inputs, with the reason.
        refused: inputs that cannot become jobs, with the sentence to tell; each counts as a failure.
    """

    jobs: tuple[Job, ...]
    ignored: tuple[tuple[Path, str], ...] = ()
    refused: tuple[tuple[Path, AudioError], ...] = ()


@dataclass(frozen=True)
class Settings:
    """How every file of a run is extended; the names and values are those of `infer.extend` and `infer.load`."""

    model: str = infer.DEFAULT_MODEL
    device: str = "cpu"
    backend: Literal["torch", "onnx"] = "torch"
    threads: int | None = None
    cutoff: float | None = None
    sample_rate: int | None = None
    amount: float = 1.0
    bits: infer.Bits = "keep"
    salvage: bool = False
    nan: Literal["refuse", "zero"] = "refuse"
    force: bool = False
    tags: bool = True
    spectrogram: str | None = None
    stereo: infer.Stereo = "auto"

    def output_rate(self) -> int:
        """Sample rate of the outputs in Hz, the model's where none is set; raises ModelError where there is no such model."""
        if self.sample_rate:
            return self.sample_rate
        if self.model.lower().endswith(".onnx"):
            return self.load().sample_rate
        return int(hub.describe(self.model)["sample_rate"])

    def keeps_rate(self) -> bool:
        """Whether inputs of a higher rate keep theirs: none is set, and the model keeps what it knows of them."""
        if self.sample_rate:
            return False
        if self.model.lower().endswith(".onnx"):
            return self.load().keeps_band
        return bool(hub.describe(self.model)["keeps_band"])

    def load(self) -> infer.Extender:
        """The model; see `infer.load` for what it raises."""
        return infer.load(self.model, self.device, self.backend, self.threads or 1)

    def extend(
        self, job: Job, model: infer.Extender, overwrite: bool = False, progress: Progress | None = None
    ) -> infer.Report:
        """Do one job; raises what `infer.extend` raises, and OutputError where a folder cannot be made."""
        if job.make_folders:
            try:
                job.target.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{job.target.parent}: the folder cannot be made ({error.strerror})") from None
        return infer.extend(
            job.source, job.target, model, job.cutoff or self.cutoff, overwrite, sample_rate=self.sample_rate,
            amount=self.amount, bits=self.bits, salvage=self.salvage, nan=self.nan, force=self.force, tags=self.tags,
            spectrogram=self.spectrogram, progress=progress, stereo=self.stereo,
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        source, target: of the job; no target where the input could not become a job.
        status: "done", "left alone" (full-band already), "skipped" (an output was there), "failed", "planned" (dry run).
        text: one line for the user.
        code: exit code of a failure, else 0.
        seconds: of audio, where it was extended.
        row: the object for the table of results.
        error: the exception of a failure in this process.
    """

    source: Path
    target: Path | None
    status: Status
    text: str
    code: int = 0
    seconds: float = 0.0
    row: dict[str, Any] = field(default_factory=dict)
    error: Exception | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Summary:
    """The account of a run; ``str(summary)`` is what is said at its end.

    Attributes:
        outcomes: one per job and refused input, in the order of the plan.
        ignored: see `Plan`.
        not_started: jobs that a stop at the first failure left out.
        seconds: of audio extended. elapsed: seconds the run took.
    """

    outcomes: tuple[Outcome, ...]
    ignored: tuple[tuple[Path, str], ...] = ()
    not_started: int = 0
    elapsed: float = 0.0

    def count(self, status: Status) -> int:
        """How many inputs ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)

    @property
    def failures(self) -> tuple[Outcome, ...]:
        return tuple(outcome for outcome in self.outcomes if outcome.status == "failed")

    @property
    def seconds(self) -> float:
        return sum(outcome.seconds for outcome in self.outcomes)

    @property
    def realtime(self) -> float:
        """Seconds of audio per second."""
        return self.seconds / self.elapsed if self.elapsed else 0.0

    @property
    def exit_code(self) -> int:
        """0 where nothing failed; the code of the failures where all have the same one; else 1."""
        codes = {outcome.code for outcome in self.failures}
        return 0 if not codes else codes.pop() if len(codes) == 1 else 1

    def __str__(self) -> str:
        done = f"{self.count('done')} done"
        if self.seconds:
            done += f" ({audio.clock(self.seconds)} of audio in {audio.clock(self.elapsed)}, {self.realtime:.1f}× real time)"
        counts = {
            "to do": self.count("planned"),
            "left alone": self.count("left alone"),
            "skipped": self.count("skipped"),
            "failed": len(self.failures),
            "not started": self.not_started,
            "ignored": len(self.ignored),
        }
        planned = counts["to do"] and not self.count("done")
        words = ([] if planned else [done]) + [f"{number} {word}" for word, number in counts.items() if number]
        lines = [", ".join(words)]
        if self.ignored:
            lines.append(f"ignored: {_some(f'{path} ({why})' for path, why in self.ignored)}")
        if self.failures:
            total = len(self.outcomes) + self.not_started
            names = _some(str(outcome.source) for outcome in self.failures)
            lines.append(f"{len(self.failures)} of {total} inputs failed: {names}")
        return "\n".join(lines)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


class Bar:
    """A progress bar with the time to go, on a stream that is a terminal; on any other it shows nothing.

    Call it with ``(seconds done, seconds in all)``, and print lines by `line`, which keeps them apart from the bar.
    """

    _WIDTH, _INTERVAL = 30, 0.1

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self.visible = self._stream.isatty()
        self._started = time.monotonic()
        self._drawn_at = -self._INTERVAL
        self._text = ""

    def __call__(self, done: float, total: float) -> None:
        now = time.monotonic()
        if not self.visible or total <= 0 or (now - self._drawn_at < self._INTERVAL and done < total):
            return
        self._drawn_at = now
        share = min(max(done / total, 0.0), 1.0)
        full = int(share * self._WIDTH)
        left = f", {audio.clock((now - self._started) * (1 - share) / share)} to go" if share else ""
        self._text = f"{'█' * full}{'░' * (self._WIDTH - full)} {audio.clock(done)} of {audio.clock(total)}{left}"
        self._stream.write(f"\r\033[K{self._text}")
        self._stream.flush()

    def line(self, text: str, stream: TextIO | None = None) -> None:
        """Print a line to ``stream`` (default: the bar's), and the bar again below it."""
        text_below, self._text = self._text, ""
        if text_below:
            self._stream.write("\r\033[K")
            self._stream.flush()
        print(text, file=stream or self._stream, flush=True)
        if text_below:
            self._text = text_below
            self._stream.write(text_below)
            self._stream.flush()

    def close(self) -> None:
        """Remove the bar."""
        if self._text:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._text = ""


class _Found(NamedTuple):
    """An input before it has a target: where it is, the folder whose tree is mirrored, what a manifest says of it."""

    source: Path
    root: Path | None = None
    output: Path | None = None
    cutoff: float | None = None
    explicit: bool = True


def plan(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
    *,
    sample_rate: int,
    keep_rate: bool = False,
    recursive: bool = False,
    name: str = NAME,
    format: str | None = None,
    manifest: str | os.PathLike[str] | None = None,
) -> Plan:
    """Say what becomes what, without writing anything.

    Args:
        inputs: files, and with ``recursive`` folders. In a folder a file is an input when it opens as audio, whatever it
            is called; one that is called like audio and does not open becomes a job too, so that its damage is told.
            Ignored are other files, what an earlier run made (``*.bwe.*``, or the target of another job), hidden
            files and folders, and the output folder. Links are followed, but each folder is read once.
        output: a file for a single input, an existing folder for several. For folders and manifests a folder, made where
            it is missing, that mirrors the tree below each input folder. None writes beside each input.
        sample_rate: of the outputs, in Hz; says which formats can hold them.
        keep_rate: that is the least: inputs of a higher one keep it as far as `infer.output_rate` says.
        name: of the outputs, from ``{stem}`` and ``{ext}``.
        format: wav, flac, mp3, ogg or opus; None keeps that of the input where it can be written, else takes WAV.
        manifest: JSON lines or CSV with ``path`` and, if wanted, ``output`` and ``cutoff`` (Hz or auto) of each file.
            Relative paths start at its folder, relative outputs at ``output``, or else at its folder.

    Raises ConfigError (two inputs with one target, an input that another would be written over, a name, format or
    manifest that cannot be used), OutputError (an output folder that is missing), AudioError (no audio in the folders).
    """
    _check_name(name, format)
    out = None if output is None else Path(output)
    found: list[_Found] = []
    ignored: list[tuple[Path, str]] = []
    refused: list[tuple[Path, AudioError]] = []
    folders: list[Path] = []
    for path in map(Path, inputs):
        if not os.path.isdir(path):
            found.append(_Found(path))
        elif recursive:
            folders.append(path)
            files, unreadable = _walk(path, out)
            found += [_Found(file, path, explicit=False) for file in files]
            refused += unreadable
        else:
            refused.append((path, AudioError(f"{path}: is a folder; give an audio file, or -r for every one in it")))
    if manifest is not None:
        found += _read_manifest(Path(manifest), out)
    tree = bool(folders) or manifest is not None
    single = len(inputs) == 1 and not tree
    _check_output(output, tree, single)
    exact = out if single and out is not None and not os.path.isdir(out) else None
    if exact is not None and format is not None and exact.suffix.lower() != f".{format}":
        raise ConfigError(f"{exact}: its name says another format than --format {format}; leave one of the two out")

    jobs: list[tuple[Job, bool]] = []
    for one in found:
        info, fault = _probe(one.source)
        if not one.explicit and info is None and one.source.suffix.lower() not in _AUDIO_SUFFIXES:
            ignored.append((one.source, fault.rsplit("; ", 1)[0]))
            continue
        folder = out or one.source.parent
        if out is not None and one.root is not None:
            folder = out / one.source.parent.relative_to(one.root)
        rate = infer.output_rate(sample_rate, info.sample_rate) if keep_rate and info else sample_rate
        target = exact or one.output or folder / _output_name(one.source, info, name, format, rate)
        make_folders = tree and (out is not None or one.output is not None)
        jobs.append((Job(one.source, target, rate, one.cutoff, info, make_folders), one.explicit))
    chosen = _without_own(jobs, ignored)
    if not chosen and not refused:
        if folders:
            names = ", ".join(map(str, folders))
            raise AudioError(f"{names}: no audio files to extend ({len(ignored)} files ignored); is it the right folder?")
        raise ConfigError(f"{manifest or 'inputs'}: lists no files; give at least one")
    return Plan(tuple(chosen), tuple(sorted(ignored)), tuple(refused))


def _check_name(name: str, format: str | None) -> None:
    if format is not None and format not in FORMATS:
        raise ConfigError(f"{format!r} is not an output format; use one of {', '.join(FORMATS)}")
    try:
        parts = list(string.Formatter().parse(name))
    except ValueError as error:
        raise ConfigError(f"name {name!r}: {error}; use a pattern such as {NAME!r}") from None
    fields = [(key, form, conversion) for _, key, form, conversion in parts if key is not None]
    if any(key not in ("stem", "ext") or form or conversion for key, form, conversion in fields):
        raise ConfigError(f"name {name!r}: only {{stem}} and {{ext}} mean something in it, as in {NAME!r}")
    if "/" in name or os.sep in name or "\0" in name or name in ("", ".", ".."):
        raise ConfigError(f"name {name!r} is no file name; say the folder with -o and the name as in {NAME!r}")


def _check_output(output: str | os.PathLike[str] | None, tree: bool, single: bool) -> None:
    if output is None or os.path.isdir(output):
        return
    if tree:
        if os.path.lexists(output):
            raise ConfigError(f"{output}: is no folder; with folders or a manifest -o must be one")
        return
    if str(output).endswith(("/", os.sep)):
        raise OutputError(f"{output}: the folder does not exist; make it first")
    if not single:
        raise ConfigError(f"{output}: with several inputs -o must be an existing folder")


def _walk(root: Path, out: Path | None) -> tuple[list[Path], list[tuple[Path, AudioError]]]:
    """Files below ``root`` in the order of their names, and folders that cannot be read. Links to folders come last, so that
    each folder is read under its own name where it has one in the tree, and a loop ends."""
    refused: list[tuple[Path, AudioError]] = []

    def unreadable(error: OSError) -> None:
        path = Path(error.filename)
        refused.append((path, AudioError(f"{path}: the folder cannot be read ({error.strerror}); check its permissions")))

    seen: set[tuple[int, int]] = set()
    if out is not None and os.path.isdir(out) and not os.path.samefile(out, root):
        seen.add(_identity(out))
    files: list[Path] = []
    pending = [root]
    while pending:
        top = pending.pop(0)
        for base, folders, names in os.walk(top, onerror=unreadable):
            if _identity(Path(base)) in seen:
                folders.clear()
                continue
            seen.add(_identity(Path(base)))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            pending += [Path(base, name) for name in folders if os.path.islink(os.path.join(base, name))]
            files += [Path(base, name) for name in names if not name.startswith(".")]
    return sorted(files), refused


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _read_manifest(path: Path, out: Path | None) -> list[_Found]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    rows: list[tuple[int, Any]] = []
    if text.lstrip().startswith("{"):
        for number, line in enumerate(text.split("\n"), 1):  # JSON strings may hold what else splitlines splits at
            if line.strip():
                try:
                    rows.append((number, json.loads(line)))
                except (ValueError, RecursionError) as error:  # ValueError: not JSON, or a number of thousands of digits
                    why = getattr(error, "msg", None) or "too deep or too long"
                    raise ConfigError(f"{path}, line {number}: is not JSON ({why}); one object per line") from None
    else:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            columns = reader.fieldnames or ()
            rows = [(reader.line_num, row) for row in reader]
        except csv.Error as error:
            raise ConfigError(f"{path}, line {reader.line_num + 1}: is not CSV ({error})") from None
        if "path" not in columns:
            raise ConfigError(f"{path}: no column 'path'; its columns are {', '.join(columns) or 'missing'}")
    return [_manifest_entry(path, number, row, out) for number, row in rows]


def _manifest_entry(manifest: Path, number: int, row: Any, out: Path | None) -> _Found:
    where = f"{manifest}, line {number}"
    if not isinstance(row, Mapping) or not isinstance(row.get("path"), str) or not row["path"]:
        raise ConfigError(f"{where}: no path; give each file as {{\"path\": …}} or a column 'path'")
    output, cutoff = row.get("output") or None, row.get("cutoff")
    if output is not None and not isinstance(output, str):
        raise ConfigError(f"{where}: output {output!r} is no file name")
    if "\0" in row["path"] + (output or ""):
        raise ConfigError(f"{where}: a file name cannot hold a NUL character; take it out")
    try:
        os.fsencode(row["path"] + (output or ""))
    except UnicodeEncodeError as error:
        unfit = error.object[error.start]
        raise ConfigError(f"{where}: a file name cannot hold the character {unfit!a}; take it out") from None
    hz: float | None = None
    if cutoff not in (None, "", "auto"):
        try:
            hz = float(cutoff)
        except (TypeError, ValueError, OverflowError):
            hz = 0.0
        if isinstance(cutoff, bool) or not 0 < hz < float("inf"):
            raise ConfigError(f"{where}: cutoff {cutoff!r} is not a frequency in Hz; give a number or auto")
    inside = not os.path.isabs(row["path"]) and ".." not in Path(row["path"]).parts
    target = None if output is None else (out or manifest.parent) / output
    return _Found(manifest.parent / row["path"], manifest.parent if inside else None, target, hz)


def _probe(source: Path, begin: bool = False) -> tuple[audio.Info | None, str]:
    """What a file declares, or why it does not open; with ``begin`` also its first block must be there, which a file that was
    seen to be cut refuses."""
    try:
        with audio.Reader(source) as reader:
            if begin:
                next(reader.blocks(), None)
            return reader.info, ""
    except (AudioError, ImportError) as error:
        return None, str(error).removeprefix(f"{source}: ")


def _output_name(source: Path, info: audio.Info | None, name: str, format: str | None, sample_rate: int) -> str:
    kept = name.format(stem=source.stem, ext=format or source.suffix[1:] or "wav")
    if format is not None or audio.can_hold(kept, sample_rate, info.channels if info else 1):
        return kept
    return name.format(stem=source.stem, ext="wav")


def _key(path: Path) -> str:
    """The same for every spelling of a name; a file that is itself a link stays apart from what it points to. Where a file is
    written is its `os.path.realpath` instead: a link that is an output is followed."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _without_own(jobs: Sequence[tuple[Job, bool]], ignored: list[tuple[Path, str]]) -> list[Job]:
    """The jobs with a target of their own; what bwe made goes to ``ignored``. The flag of a job: named by the user."""
    by_target: dict[str, Job] = {}
    made = {_key(job.target) for job, _ in jobs if _key(job.target) != _key(job.source)}
    for job, explicit in jobs:
        if not explicit and (_key(job.source) in made or Path(job.source.stem).suffix == ".bwe"):
            ignored.append((job.source, "made by bwe"))
            continue
        other = by_target.setdefault(os.path.realpath(job.target), job)
        if _key(other.source) != _key(job.source):
            raise ConfigError(_same_target(other, job))
        if other.cutoff != job.cutoff:
            one, two = (f"{c:g} Hz" if c else "no cut-off" for c in (other.cutoff, job.cutoff))
            raise ConfigError(f"{job.source}: is an input twice, with {one} and with {two}; leave one of them out")
    chosen = list(by_target.values())
    sources = {os.path.realpath(job.source): job.source for job in chosen}
    for job in chosen:
        victim = sources.get(os.path.realpath(job.target))
        if len(chosen) > 1 and victim is not None:
            raise ConfigError(f"{victim}: is an input, and {job.source} would be written over it; choose another --name or -o")
    return chosen


def _same_target(first: Job, second: Job) -> str:
    if first.source.name == second.source.name:
        return f"two inputs are called {first.source.name}: in {second.target.parent} one would replace the other"
    return f"{first.source} and {second.source} would both become {second.target}; give another --name, or run them apart"


def check_report(report: str | os.PathLike[str], files: Iterable[str | os.PathLike[str]]) -> None:
    """Raise ConfigError where the table of results would be written over one of ``files``, whatever may be overwritten."""
    place = os.path.realpath(report)
    for file in files:
        if os.path.realpath(file) == place:
            raise ConfigError(f"{report}: the report would be written over {file}; give it a name of its own")


def run(
    plan: Plan,
    settings: Settings,
    *,
    ray_workers: int = 0,
    overwrite: bool = False,
    skip_existing: bool = False,
    fail_fast: bool = False,
    dry_run: bool = False,
    report: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    tell: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Do a plan file after file, with one loaded model. What is wrong with one file is told, and the rest goes on.

    Args:
        ray_workers: above 0, the plan is a Ray Data job of so many processes, each with the model and one CPU (a GPU too for
            device cuda), under the same rules and with the same table. A job whose worker is lost is done again by another
            one, up to three times; a file that kills every worker fails alone. The cluster is the one that the process is
            connected to or that RAY_ADDRESS names; its machines must see the files under the same paths. Without either it is
            started here and stopped at the end; it listens on the loopback interface only, unless Ray was imported before.
        overwrite: replace existing outputs.
        skip_existing: leave out jobs whose output is there. It may be trusted to be complete, since outputs appear only
            by a rename; still it must open and have the rate and length that the input leads to. One that has not is a
            failure, and is written again only where ``overwrite`` is set too.
        fail_fast: stop at the first failure.
        dry_run: only say what would be done.
        report: a file for the table of results, JSON lines: one object per job, appended as soon as it is known, in the
            order of the plan at the end. With ``skip_existing`` a table of an earlier run is continued.
        progress: called with the seconds of audio done and those of the whole run.
        tell: called with each outcome as it comes.

    Raises ModelError and ConfigError of the model, ConfigError where the report is an input or an output, and OutputError: the
    report cannot be written, or the outputs would not fit into the free space. With Ray also ImportError without the extra
    ``ray``, ConfigError where no cluster answers, BweError where it goes away.
    """
    if ray_workers:
        jobs = (dataclasses.replace(job, source=job.source.absolute(), target=job.target.absolute()) for job in plan.jobs)
        plan = dataclasses.replace(plan, jobs=tuple(jobs))
    if report is not None:
        check_report(report, (path for job in plan.jobs for path in (job.source, job.target)))
    started = time.perf_counter()
    outcomes: dict[int, Outcome] = {}
    table = None if report is None or dry_run else _Table(Path(report), skip_existing, overwrite)

    def settle(index: int, outcome: Outcome) -> bool:
        """Take down and tell an outcome; whether the run goes on."""
        outcomes[index] = outcome
        if table is not None:
            table.add(index, outcome)
        tell(outcome)
        return not (fail_fast and outcome.status == "failed")

    refused = [(index - len(plan.refused), *entry) for index, entry in enumerate(plan.refused)]
    going = all(settle(index, _failure(path, None, error)) for index, path, error in refused)
    todo: list[tuple[int, Job]] = []
    for index, job in enumerate(plan.jobs if going else ()):
        outcome = _triage(job, plan, settings, overwrite, skip_existing)
        if outcome is None:
            todo.append((index, job))
        elif not settle(index, outcome):
            going = False
            break
    if dry_run:
        for index, job in todo:
            settle(index, _planned(job, settings))
    _check_space((job for _, job in todo), settings.bits)
    if going and todo and not dry_run:
        folders = {job.target.parent for _, job in todo}
        for folder in folders:
            audio.sweep(folder)
        if ray_workers:
            work = _by_ray(todo, settings, ray_workers, overwrite, progress)
        else:
            work = _one_by_one(todo, settings, overwrite, progress)
        with contextlib.closing(work) as results:
            all(settle(index, outcome) for index, outcome in results)
        for folder in folders:  # workers that were killed leave something, too
            audio.sweep(folder)
    told = tuple(outcomes[index] for index in sorted(outcomes))
    if table is not None:
        table.finish()
    not_started = len(plan.jobs) + len(plan.refused) - len(told)
    return Summary(told, plan.ignored, not_started, time.perf_counter() - started)


def _one_by_one(todo: Sequence[tuple[int, Job]], settings: Settings, overwrite: bool, progress: Progress | None) -> Work:
    model = settings.load()
    total, before = sum(job.seconds for _, job in todo), 0.0
    for index, job in todo:
        inner = None if progress is None else _shifted(progress, before, job.seconds, total)
        yield index, _attempt(job, settings, model, overwrite, inner)
        before += job.seconds
        if progress is not None:
            progress(before, total)


def _shifted(progress: Progress, before: float, length: float, total: float) -> Progress:
    """Progress of one file told as progress of the run."""
    return lambda done, of: progress(before + (length * done / of if of else 0.0), total)


def _attempt(job: Job, settings: Settings, model: infer.Extender, overwrite: bool, progress: Progress | None) -> Outcome:
    try:
        report = settings.extend(job, model, overwrite, progress)
        row = report.to_dict()
    except Exception as error:
        return _failure(job.source, job.target, error)
    if report.out_path is None:
        return Outcome(job.source, job.target, "left alone", str(report), row=row)
    return Outcome(job.source, job.target, "done", str(report), seconds=report.seconds, row=row)


def _failure(source: Path, target: Path | None, error: Exception) -> Outcome:
    text, code = str(error), error.exit_code if isinstance(error, BweError) else 1
    if isinstance(error, ImportError):
        code = ConfigError.exit_code
    elif is_out_of_memory(error):
        text, code = f"{source}: out of memory; free some, or use fewer workers", OUT_OF_MEMORY
    elif not isinstance(error, BweError):
        text = f"{source}: unexpected {type(error).__name__}: {(text.splitlines() or ['no message'])[0]}"
    row = _row(source, target, "failed", error=text, code=code)
    return Outcome(source, target, "failed", text, code, row=row, error=error)


def _row(source: Path, target: Path | None, status: Status, **more: Any) -> dict[str, Any]:
    """The object of a job that has no `infer.Report`, with the same keys where it has them."""
    output = None if target is None else {"path": str(target)}
    known = {"schema": infer.SCHEMA, "bwe": __version__, "status": status, "input": {"path": str(source)}, "output": output}
    return {**known, **more}


def _triage(job: Job, plan: Plan, settings: Settings, overwrite: bool, skip_existing: bool) -> Outcome | None:
    """What can be said of a job before any work: None where it is to be done."""
    target = job.target
    try:
        if skip_existing and os.path.isfile(target):
            fault = _fault(job, settings.salvage)
            if not fault:
                text = f"{target}: exists already, skipped"
                return Outcome(job.source, target, "skipped", text, row=_row(job.source, target, "skipped"))
            if not overwrite:
                raise OutputError(f"{target}: exists already but {fault}; check it, and write it again with --overwrite")
        elif os.path.exists(target) or not job.make_folders:
            audio.check_output(target, overwrite)
        else:
            audio.output_format(target)
    except OutputError as error:
        return _failure(job.source, target, error)
    return None


def _fault(job: Job, salvage: bool) -> str:
    """What speaks against an existing file being the finished output of a job; an empty text where nothing does."""
    info, why = _probe(job.target, begin=True)
    if info is None:
        return f"cannot be read ({why.rsplit('; ', 1)[0]})"  # without its advice, which is for an input
    if info.sample_rate != job.sample_rate:
        return f"has {info.sample_rate} Hz instead of {job.sample_rate} Hz"
    if job.info is None:
        return ""
    if info.channels != job.info.channels:
        return f"has {info.channels} channels instead of {job.info.channels}"
    if salvage:
        return ""
    expected = dsp.resampled_length(job.info.frames, job.info.sample_rate, job.sample_rate)
    lossy = any(subtype not in _SAMPLE_BYTES for subtype in (info.subtype, job.info.subtype))
    if abs(info.frames - expected) > (_LOSSY_SLACK_SECONDS * job.sample_rate if lossy else 0):
        return f"has {info.frames} samples instead of {expected}"
    return ""


def _planned(job: Job, settings: Settings) -> Outcome:
    cutoff = job.cutoff or settings.cutoff
    band = f"cut-off {cutoff / 1000:g} kHz as given" if cutoff else "cut-off found when it runs"
    size = _predicted_bytes(job, settings.bits)
    rate = f" {job.info.sample_rate / 1000:g} kHz" if job.info else ""
    length = f"  {audio.clock(job.seconds)}" if job.info else "  does not open"
    text = f"{job.source}{rate} → {job.target} {job.sample_rate / 1000:g} kHz{length}  {band}  about {audio.megabytes(size)}"
    row = _row(job.source, job.target, "planned", cutoff_hz=cutoff, seconds=job.seconds, bytes=size)
    return Outcome(job.source, job.target, "planned", text, row=row)


def _predicted_bytes(job: Job, bits: str) -> int:
    """Bytes that the output of a job will have; for formats that compress, about."""
    if job.info is None:
        return 0
    try:
        container = audio.output_format(job.target)
        subtype = audio.fitting_subtype(job.target, audio.SUBTYPES.get(bits, job.info.subtype))
    except OutputError:
        return 0
    frames = dsp.resampled_length(job.info.frames, job.info.sample_rate, job.sample_rate)
    if subtype not in _SAMPLE_BYTES:
        return round(frames / job.sample_rate * _LOSSY_BYTES_PER_SECOND * max(1, job.info.channels / 2))
    return round(frames * job.info.channels * _SAMPLE_BYTES[subtype] * (_FLAC_RATIO if container == "FLAC" else 1))


def _check_space(jobs: Iterable[Job], bits: str) -> None:
    """Raise OutputError where the outputs of all jobs together do not fit into a file system they go to."""
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for job in jobs:
        folder = job.target.absolute().parent
        while not os.path.isdir(folder):
            folder = folder.parent
        device = folder.stat().st_dev
        replaced = job.target.stat().st_size if os.path.isfile(job.target) else 0
        needed[device] = needed.get(device, 0) + _predicted_bytes(job, bits) - replaced
        folders.setdefault(device, folder)
    for device, folder in folders.items():
        free = shutil.disk_usage(folder).free
        if needed[device] > free:
            raise OutputError(
                f"{folder}: no space left for all outputs (they need about {audio.megabytes(needed[device])}, "
                f"{audio.megabytes(free)} free); free some, or choose another folder with -o"
            )


class _Table:
    """The results as JSON lines: one object per job, in the file as soon as it is known."""

    def __init__(self, path: Path, resume: bool, overwrite: bool) -> None:
        self._path = path
        audio.check_place(path, resume or overwrite)
        self._file = Path(os.path.realpath(path))  # a link stays one
        # The same name in every run: what a killed run leaves of it, the next one takes away.
        self._temporary = self._file.with_name(f".{self._file.name}.tmp")
        self._earlier = self._read() if resume and os.path.exists(path) else {}
        self._rows: dict[int, dict[str, Any]] = {}
        self._replace(self._earlier.values())

    def _read(self) -> dict[tuple[str, str | None], dict[str, Any]]:
        """Rows of an earlier run by input and output, which is None where none was written."""
        lines = self._path.read_bytes().split(b"\n")
        rows = {}
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                rows[row["input"]["path"], row["output"]["path"] if row["output"] else None] = row
            except (ValueError, TypeError, LookupError):
                if number < len(lines):  # the last line is empty, or torn where the run was killed
                    raise OutputError(f"{self._path}, line {number}: is no result of bwe; choose another file") from None
        return rows

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"{self._path}: cannot be written ({error.strerror})") from None

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self._failures():
            try:
                with open(self._temporary, "w", encoding="ascii") as stream:
                    stream.writelines(json.dumps(row) + "\n" for row in rows)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(self._temporary, self._file)
            finally:
                self._temporary.unlink(missing_ok=True)

    def add(self, index: int, outcome: Outcome) -> None:
        """Append the result of a job; one that was skipped keeps the row of the run that did it."""
        source = str(outcome.source)
        done = self._earlier.pop((source, str(outcome.target)), None)
        self._earlier.pop((source, None), None)
        if outcome.status == "skipped" and done is not None and done["status"] == "done":
            self._rows[index] = done
            return
        self._rows[index] = outcome.row
        with self._failures(), open(self._path, "a", encoding="ascii") as stream:
            stream.write(json.dumps(outcome.row) + "\n")

    def finish(self) -> None:
        """One row per job, in the order of the plan, after those of other jobs that the table had before."""
        self._replace([*self._earlier.values(), *(self._rows[index] for index in sorted(self._rows))])


class _Worker:
    """A process of a Ray job: holds the model, does one job at a time."""

    def __init__(self, settings: Settings, overwrite: bool) -> None:
        self._settings, self._overwrite = settings, overwrite
        self._model: infer.Extender | None = None
        self._name = f"{platform.node()}:{os.getpid()}"

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        job: Job = item["job"]
        outcome = None if self._overwrite else _earlier_attempt(job, self._settings.salvage)
        if outcome is None:
            outcome = self._attempt(job)
        row = {**outcome.row, "worker": self._name}
        return {"index": item["index"], "outcome": dataclasses.replace(outcome, row=row, error=None)}

    def _attempt(self, job: Job) -> Outcome:
        if self._model is None:  # not in the constructor: Ray starts a worker that fails there again and again
            try:
                self._model = self._settings.load()
            except Exception as error:
                return _failure(job.source, job.target, error)
        return _attempt(job, self._settings, self._model, self._overwrite, None)


def _earlier_attempt(job: Job, salvage: bool) -> Outcome | None:
    """The outcome of a job whose worker was lost after it had renamed the output and before it could say so."""
    if not os.path.isfile(job.target) or _fault(job, salvage):
        return None
    why = "its worker was lost before it could tell the figures"
    text = f"{job.source} → {job.target}  {audio.clock(job.seconds)}  done; {why}"
    row = _row(job.source, job.target, "done", seconds=job.seconds, warnings=[why])
    return Outcome(job.source, job.target, "done", text, seconds=job.seconds, row=row)


def _by_ray(
    todo: Sequence[tuple[int, Job]],
    settings: Settings,
    workers: int,
    overwrite: bool,
    progress: Progress | None,
) -> Work:
    """Jobs in any order, each with its outcome."""
    # A damaged model is refused here, in one sentence, and not by every worker.
    dataclasses.replace(settings, device="cpu", backend="torch").load()
    needs_gpu = settings.device.startswith("cuda")
    total, done = sum(job.seconds for _, job in todo), 0.0
    left = dict(todo)
    with _ray_data(workers, needs_gpu) as data:
        items = [{"index": index, "job": job} for index, job in todo]
        dataset = data.from_items(items, override_num_blocks=min(len(items), _RAY_BLOCKS)).map(
            _Worker,
            fn_constructor_args=(_for_workers(settings), overwrite),
            compute=data.ActorPoolStrategy(size=min(workers, len(items)), max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=int(needs_gpu),
            max_task_retries=_RAY_RETRIES,
        )
        for result in dataset.iter_rows():
            done += left.pop(result["index"]).seconds
            yield result["index"], result["outcome"]
            if progress is not None:
                progress(done, total)
    for index, job in left.items():
        lost = AudioError(f"{job.source}: every worker that took it was lost; extend it alone to see why")
        outcome = None if overwrite else _earlier_attempt(job, settings.salvage)
        yield index, outcome or _failure(job.source, job.target, lost)


def _for_workers(settings: Settings) -> Settings:
    """The settings as another process in another folder understands them."""
    model = settings.model
    if model not in hub.list_models():
        model = os.path.abspath(model)
    picture = settings.spectrogram and os.path.abspath(settings.spectrogram)
    return dataclasses.replace(settings, model=model, spectrogram=picture)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the time being, and for the processes started then."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _ray_data(workers: int, needs_gpu: bool) -> Iterator[Any]:
    """The module ``ray.data`` beside a running cluster."""
    address = os.environ.get("RAY_ADDRESS")
    with _environment(_RAY_REMOTE if address else _RAY_OFFLINE):
        try:
            import ray
            import ray.data
        except ImportError as error:
            raise ImportError("running on Ray needs Ray Data: pip install 'bwe[ray]'") from error
        ours = not ray.is_initialized()
        if ours:
            local: dict[str, Any] = {
                "address": "local", "num_cpus": workers, "include_dashboard": False, "object_store_memory": _RAY_STORE_BYTES,
            }  # fmt: skip
            try:
                ray.init(**({} if address else local), log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
                where = (
                    f"the Ray cluster at RAY_ADDRESS {address} does not answer" if address else "Ray cannot be started here"
                )
                raise ConfigError(f"{where} ({str(error).splitlines()[0]}); check it, or run without Ray") from None
    context = ray.data.DataContext.get_current()
    # Errored blocks: a job that no worker survives is told as failed, and the rest goes on.
    wanted = {"enable_progress_bars": False, "print_on_execution_start": False, "max_errored_blocks": -1}
    before = {name: getattr(context, name) for name in wanted}
    logger = logging.getLogger("ray.data")
    level = logger.level
    try:
        if needs_gpu and not ray.cluster_resources().get("GPU"):
            raise ConfigError("device cuda: no machine of the Ray cluster has a GPU; use --device cpu")
        logger.setLevel(logging.CRITICAL)
        for name, value in wanted.items():
            setattr(context, name, value)
        yield ray.data
    except ray.exceptions.RayError as error:
        why = str(error).splitlines()[0]
        raise BweError(f"the Ray job ended early ({why}); what it did is kept: run again with --skip-existing") from None
    finally:
        for name, value in before.items():
            setattr(context, name, value)
        logger.setLevel(level)
        if ours:
            ray.shutdown()
