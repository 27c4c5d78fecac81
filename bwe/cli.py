"""The command ``bwe``: results on stdout, words on stderr, one sentence for what goes wrong, and an exit code that is true.

0 all done, 1 an input failed (the others are done), 2 usage or config, 3 model, 4 output, 5 out of memory, 130
interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import traceback
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from bwe import __version__
from bwe.errors import OUT_OF_MEMORY, BweError, ConfigError, OutputError, is_out_of_memory, nearest

INTERRUPTED, TERMINATED = 130, 143


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def _build_parser() -> tuple[_Parser, tuple[str, ...]]:
    """The parser, and the names of the commands."""
    parser = _Parser(prog="bwe", description="Fill in the missing high band of audio.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"bwe {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False)
        sub.set_defaults(run=run)
        return sub

    extend = add("extend", _extend, "Extend audio files to the model's sample rate.")
    extend.add_argument("inputs", nargs="*", metavar="IN", help="audio file, a folder with -r, or - for stdin")
    extend.add_argument(
        "-o", "--output", metavar="OUT", help="output file, a folder, or - (default: IN's name with .bwe, next to IN)"
    )
    _model_options(extend)
    extend.add_argument(
        "-r", "--recursive", action="store_true", help="take folders (but for hidden files and *.bwe.*), mirror them in OUT"
    )
    extend.add_argument("--manifest", metavar="FILE", help="inputs from JSON lines or CSV: path, output, cutoff")
    extend.add_argument("--name", default=None, metavar="PATTERN", help="names of outputs (default: {stem}.bwe.{ext})")
    extend.add_argument("--format", metavar="EXT", help="wav, flac, mp3, ogg or opus (default: that of the input)")
    extend.add_argument(
        "--sr", type=int, choices=(16_000, 24_000, 44_100, 48_000),
        help="sample rate of the output (default: the model's, or IN's where that is higher)",
    )  # fmt: skip
    extend.add_argument("--bits", default="keep", choices=("keep", "16", "24", "32f"), help="bits per sample (default: keep)")
    extend.add_argument("--amount", type=_share, default=1.0, metavar="0..1", help="share of the generated band (default: 1)")
    extend.add_argument(
        "--stereo", default="auto", choices=("auto", "independent", "mid-side"), help="what of two channels is extended",
    )  # fmt: skip
    extend.add_argument("--force", action="store_true", help="extend also what is full-band already")
    extend.add_argument("--salvage", action="store_true", help="keep the readable part of damaged inputs")
    extend.add_argument("--nan", default="refuse", choices=("refuse", "zero"), help="what to do with NaN and Inf in the input")
    extend.add_argument("--no-tags", action="store_true", help="copy no title, artist, ...")
    extend.add_argument("--spectrogram", metavar="PNG", help="picture of before, after and difference (one input)")
    extend.add_argument("--report", metavar="FILE", help="JSON lines: what was done, one object per file")
    existing = extend.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    existing.add_argument("--skip-existing", action="store_true", help="leave out inputs whose output is there")
    extend.add_argument("--fail-fast", action="store_true", help="stop at the first input that fails")
    extend.add_argument("--dry-run", action="store_true", help="say what would be done, write nothing")
    extend.add_argument("--engine", choices=("local", "ray"), default="local", help="where to work (default: local)")
    extend.add_argument("--workers", type=_positive, default=2, metavar="N", help="processes of --engine ray (default: 2)")

    stream = add("stream", _stream, "Extend a live signal: raw samples from stdin to stdout, or sound devices.")
    _model_options(stream, "speech-48k-stream")
    stream.add_argument("--sr-in", type=_positive, default=16_000, metavar="HZ", help="rate of the input (default: 16000)")
    stream.add_argument("--raw", choices=("s16le", "f32le"), default="s16le", help="samples of the pipes (default: s16le)")
    stream.add_argument("--channels", type=_positive, default=1, metavar="N", help="interleaved channels (default: 1)")
    stream.add_argument("--in-dev", metavar="DEV", help="microphone: number or part of the name")
    stream.add_argument("--out-dev", metavar="DEV", help="loudspeaker: number or part of the name")
    stream.add_argument("--devices", action="store_true", help="list the sound devices")
    stream.add_argument("--latency", action="store_true", help="measure algorithmic latency and speed, and end")

    inspect = add("inspect", _inspect, "Say what is in audio files, and whether they need extending.")
    inspect.add_argument("inputs", nargs="+", metavar="IN", help="audio file")
    inspect.add_argument("--json", action="store_true", help="one JSON object per file and line")

    degrade = add("degrade", _degrade, "Make a narrow recording out of a full-band one, to try things.")
    degrade.add_argument("input", metavar="IN", help="audio file")
    degrade.add_argument("-o", "--output", metavar="OUT", required=True, help="output file")
    degrade.add_argument("--to", type=_frequency, metavar="HZ", dest="to_hz", help="cut-off")
    degrade.add_argument("--filter", default="cheby1", metavar="NAME", help="what removes the band (default: cheby1)")
    degrade.add_argument("--order", type=_positive, default=8, metavar="N", help="of an IIR filter (default: 8)")
    degrade.add_argument("--codec", metavar="NAME:RATE", help="such as mp3:64k, opus:12k, gsm")
    degrade.add_argument("--bone", metavar="SENSOR", help="such as throat")
    degrade.add_argument("--seed", type=int, default=0, metavar="N")
    degrade.add_argument("--overwrite", action="store_true", help="replace an existing output")

    export = add("export", _export, "Write a model as ONNX, for onnxruntime.")
    export.add_argument("model", metavar="MODEL", help="shipped name or checkpoint folder")
    export.add_argument("-o", "--output", metavar="F.onnx", required=True, help="the file to write")
    export.add_argument("--streaming", action="store_true", help="block by block, with its state as inputs and outputs")
    export.add_argument("--int8", metavar="FOLDER", help="8-bit convolutions, calibrated on the recordings in FOLDER")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")

    doctor = add("doctor", _doctor, "Check this installation: versions, devices, codecs, models.")
    doctor.add_argument("--json", action="store_true", help="as a JSON object")

    models = add("models", _models, "List the shipped models.")
    models.add_argument("--json", action="store_true", help="as a JSON list")

    prepare = add("prepare", _prepare, "Pack a folder of recordings for training, and check every file of it.")
    prepare.add_argument("folder", metavar="FOLDER", help="recordings, with or without a manifest.csv")
    prepare.add_argument("-o", "--output", metavar="OUT", required=True, help="folder for the packed train/ and valid/")
    prepare.add_argument("--rate", type=_positive, default=48_000, metavar="HZ", help="sample rate (default: 48000)")
    prepare.add_argument("--class", metavar="NAME", dest="cls", help="only this class of the folder's manifest.csv")

    train = add("train", _train, "Train a model after a recipe.")
    train.add_argument("recipe", metavar="RECIPE", help="a file such as recipes/speech.py")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe to change")
    # torchrun takes --run for an abbreviation of one of its own options.
    train.add_argument("--run", "--run-dir", metavar="DIR", dest="run_dir", help="folder of this run (default: runs/<recipe>)")
    train.add_argument("--resume", action="store_true", help="continue the run in that folder")

    evaluate = add("eval", _evaluate, "Measure models over a folder of full-band audio, or folders of finished estimates.")
    evaluate.add_argument(
        "words", nargs="*", metavar="MODEL... FOLDER",
        help="shipped names, checkpoint folders, sinc or sbr; then the folder of full-band references",
    )  # fmt: skip
    evaluate.add_argument("--ref", metavar="DIR", help="instead of MODEL and FOLDER: the references of finished estimates")
    evaluate.add_argument(
        "--est", action="extend", nargs="+", default=[], metavar="[NAME=]DIR", help="finished estimates, one folder per system"
    )
    evaluate.add_argument("--input", metavar="DIR", help="with --ref: what the estimates were made from")
    evaluate.add_argument("--no-align", action="store_true", help="with --ref: leave delay, polarity and level as they are")
    evaluate.add_argument(
        "--cutoff", type=_frequency, nargs="+", metavar="HZ", help="where the known band ends (default: 4000 8000)"
    )
    evaluate.add_argument("--filter", nargs="+", metavar="NAME", help="what removes the band (default: brickwall)")
    evaluate.add_argument("--split", metavar="NAME", help="only this split of the folder's manifest.csv")
    evaluate.add_argument("--class", metavar="NAME", dest="cls", help="only this class of the folder's manifest.csv")
    evaluate.add_argument("--detect", action="store_true", help="let the models find the cut-off instead of telling them")
    evaluate.add_argument("--baseline", metavar="NAME", help="what the others are compared with (default: input)")
    evaluate.add_argument("--metrics", nargs="+", metavar="NAME", help="only these (default: all that are installed)")
    evaluate.add_argument("--workers", type=_positive, metavar="N", help="processes (default: one for each core)")
    evaluate.add_argument("--json", metavar="FILE", help="write all figures to this file")
    evaluate.add_argument("--csv", metavar="FILE", help="write a line per file, system and condition")
    evaluate.add_argument("--report", metavar="F.html", help="write a page with charts and clips to listen to")
    evaluate.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    kept = evaluate.add_mutually_exclusive_group()
    kept.add_argument("--cache", metavar="DIR", help="where finished files are kept (default: ~/.cache/bwe/eval)")
    kept.add_argument("--no-cache", action="store_true", help="keep nothing, measure everything")

    report = add("report", _report, "Write one HTML page about a training run.")
    report.add_argument("run_dir", metavar="RUN", help="folder of the run, such as runs/speech-48k")
    report.add_argument("-o", "--output", metavar="FILE", help="the page (default: report.html in RUN)")
    return parser, tuple(commands.choices)


def _model_options(parser: argparse.ArgumentParser, default: str = "speech-48k") -> None:
    parser.add_argument(
        "-m", "--model", default=default, help=f"shipped name, checkpoint folder or exported .onnx (default: {default})"
    )
    parser.add_argument("--cutoff", type=_cutoff, default=None, metavar="HZ|auto", help="where the known band ends")
    parser.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda, cuda:1, mps or auto (default: cpu)")
    parser.add_argument("--backend", choices=("torch", "onnx"), default="torch", help="what runs the network (default: torch)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads to use")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _frequency(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a frequency in Hz")
    return value


def _cutoff(text: str) -> float | None:
    return None if text == "auto" else _frequency(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to 999999999")
    return int(text)


def _drop(stream: TextIO | None) -> None:
    if stream is not None:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())


@contextlib.contextmanager
def _dropped(stream: TextIO | None, result: bool = False) -> Iterator[None]:
    """Where ``stream`` takes no more words, it gets none from then on, and the work and its exit code stay what they are.
    Raises OutputError where the words are the ``result`` and were lost in another way than by a reader that had enough."""
    try:
        yield
    except OSError as error:
        _drop(stream)
        if result and not isinstance(error, BrokenPipeError):
            raise OutputError(f"<stdout>: cannot be written ({error.strerror}); send it elsewhere") from None


def _say(text: str) -> None:
    with _dropped(sys.stderr):
        print(_printable(text), file=sys.stderr, flush=True)


def _show(text: object, result: bool = True) -> None:
    """Print on stdout what a command was asked for or, where that is a file, what became of it."""
    with _dropped(sys.stdout, result):
        print(text, flush=True)


def _printable(text: str) -> str:
    """One line that a terminal shows as it is: names of files may hold newlines and escape sequences."""
    return "".join(c if unicodedata.category(c) not in ("Cc", "Zl", "Zp") else repr(c)[1:-1] for c in text)


def _extend(args: argparse.Namespace) -> int:
    from bwe import batch

    _use_threads(args.threads)
    if "-" in args.inputs or args.output == "-":
        return _extend_pipe(args)
    if not args.inputs and not args.manifest:
        raise ConfigError("the following arguments are required: IN, or --manifest (see `bwe extend --help`)")
    settings = batch.Settings(
        model=args.model, device=args.device, backend=args.backend, threads=args.threads, cutoff=args.cutoff,
        sample_rate=args.sr, amount=args.amount, bits=args.bits, salvage=args.salvage, nan=args.nan, force=args.force,
        tags=not args.no_tags, spectrogram=args.spectrogram, stereo=args.stereo,
    )  # fmt: skip
    with _terminable(), contextlib.closing(batch.Bar()) as bar:
        plan = batch.plan(
            args.inputs, args.output, sample_rate=settings.output_rate(), keep_rate=settings.keeps_rate(),
            recursive=args.recursive, name=args.name or batch.NAME, format=args.format, manifest=args.manifest,
        )  # fmt: skip
        many = len(plan.jobs) + len(plan.refused) > 1
        if args.report and args.manifest:
            batch.check_report(args.report, [args.manifest])
        if args.spectrogram and many:
            raise ConfigError("--spectrogram is for one input; draw the others one by one")

        def tell(outcome: batch.Outcome) -> None:
            with _dropped(sys.stderr):
                if outcome.error is not None and args.debug:
                    traceback.print_exception(outcome.error)
                for warning in outcome.row.get("warnings", ()):
                    bar.line(_printable(f"bwe: warning: {warning}"))
                if outcome.status == "failed":
                    bar.line(_printable(f"bwe: error: {outcome}"))
            if outcome.status != "failed" and sys.stdout is not None:
                with _dropped(sys.stdout):
                    bar.line(_printable(str(outcome)), sys.stdout)

        summary = batch.run(
            plan, settings, ray_workers=args.workers if args.engine == "ray" else 0, overwrite=args.overwrite,
            skip_existing=args.skip_existing, fail_fast=args.fail_fast, dry_run=args.dry_run, report=args.report,
            progress=bar if bar.visible else None, tell=tell,
        )  # fmt: skip
    if many or args.dry_run:
        for line in str(summary).splitlines():
            _say(f"bwe: {line}")
    return summary.exit_code


def _extend_pipe(args: argparse.Namespace) -> int:
    """One input, of which the source, the output or both are a standard stream; all words go to stderr."""
    for option in ("recursive", "manifest", "name", "format", "skip_existing", "dry_run", "fail_fast"):
        if getattr(args, option):
            raise ConfigError(f"--{option.replace('_', '-')} does not go with - (see `bwe extend --help`)")
    if len(args.inputs) != 1 or args.engine != "local":
        raise ConfigError("- stands for one input or output, done here; give one of each, and no --engine")
    if sys.stdout is None or (args.output == "-" and sys.stdout.isatty()):
        raise OutputError("<stdout>: is a terminal or closed; pipe the audio into something or give a file name")
    from bwe import audio, batch, infer, runs

    if args.report:
        batch.check_report(args.report, [name for name in (*args.inputs, args.output) if name not in (None, "-")])
        audio.check_place(Path(args.report), args.overwrite)

    model = infer.load(args.model, args.device, args.backend, args.threads or 1)
    with _terminable(), contextlib.ExitStack() as stack:
        source: Any = stack.enter_context(audio.stdin_source()) if args.inputs[0] == "-" else args.inputs[0]
        target: Any = sys.stdout.buffer if args.output == "-" else args.output
        report = infer.extend(
            source, target, model, args.cutoff, args.overwrite, sample_rate=args.sr, amount=args.amount, bits=args.bits,
            salvage=args.salvage, nan=args.nan, force=args.force, tags=not args.no_tags, spectrogram=args.spectrogram,
            stereo=args.stereo,
        )  # fmt: skip
    if args.report:
        runs.write_text(Path(os.path.realpath(args.report)), json.dumps(report.to_dict()) + "\n")
    for warning in report.warnings:
        _say(f"bwe: warning: {warning}")
    if args.output != "-":
        _show(_printable(str(report)), result=False)
    elif sys.stderr.isatty():
        _say(str(report))
    return 0


def _stream(args: argparse.Namespace) -> int:
    from bwe import infer, live

    if args.devices:
        _show(live.sound_devices())
        return 0
    _use_threads(args.threads or 1)
    model = infer.load(args.model, args.device, args.backend, args.threads or 1)
    if args.latency:
        _show(live.measure(model, args.sr_in, args.cutoff))
        return 0
    with _terminable():
        if args.in_dev is not None or args.out_dev is not None:
            source, sink = (int(dev) if dev is not None and dev.isdecimal() else dev for dev in (args.in_dev, args.out_dev))
            underruns = live.devices(model, args.sr_in, source=source, sink=sink, channels=args.channels, cutoff=args.cutoff)
            _say(f"bwe: {underruns} underruns")
            return 0
        if sys.stdin is None or sys.stdout is None or sys.stdin.isatty() or sys.stdout.isatty():
            raise ConfigError("raw samples go from a pipe to a pipe: ... | bwe stream --sr-in 16000 --raw s16le | ...")
        ends = sys.stdin.buffer, sys.stdout.buffer
        try:
            live.pipe(model, *ends, args.sr_in, encoding=args.raw, channels=args.channels, cutoff=args.cutoff)
        except BrokenPipeError:  # the reader had enough
            _drop(sys.stdout)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from bwe import inspection

    codes = []
    for name in args.inputs:
        try:
            found = inspection.inspect(name)
        except BweError as error:
            if len(args.inputs) == 1:
                raise
            _tell(error, args.debug)
            codes.append(error.exit_code)
        else:
            lines = json.dumps(found.to_dict()) if args.json else "\n".join(map(_printable, str(found).splitlines()))
            _show(lines)
    return max(codes, default=0)


def _degrade(args: argparse.Namespace) -> int:
    from bwe import degrade

    with _terminable():
        line = degrade.degrade_file(
            args.input, args.output, args.to_hz, filter=args.filter, order=args.order, codec=args.codec, bone=args.bone,
            seed=args.seed, overwrite=args.overwrite,
        )  # fmt: skip
        _show(_printable(line), result=False)
    return 0


def _export(args: argparse.Namespace) -> int:
    from bwe import export

    with _terminable():
        done = export.export(args.model, args.output, streaming=args.streaming, int8=args.int8, overwrite=args.overwrite)
        _show(_printable(str(done)), result=False)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    from bwe import doctor

    found = doctor.examine()
    _show(json.dumps(found.to_dict(), indent=1) if args.json else found)
    return found.exit_code


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the stack like Ctrl-C does, so that temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _models(args: argparse.Namespace) -> int:
    from bwe import hub

    found = [hub.describe(name) for name in hub.list_models()]
    if args.json:
        _show(json.dumps(found, indent=1))
        return 0
    if not found:
        _say("bwe: no models in this installation")
    for model in found:
        _show(f"{model['name']}  {model['sample_rate'] / 1000:g} kHz  {model['bytes'] / 1e6:.1f} MB  {model['summary']}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from bwe import data

    with _terminable():
        data.prepare(args.folder, args.output, args.rate, args.cls, _say)
    for split in ("train", "valid"):
        data.verify(Path(args.output) / split)
    _show(args.output, result=False)
    return 0


def _train(args: argparse.Namespace) -> int:
    from bwe import train

    done = train.main(args.recipe, args.overrides, args.run_dir, args.resume)
    _show(done, result=False)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    pairs = args.ref is not None or bool(args.est)
    if pairs and (args.words or args.ref is None or not args.est):
        raise ConfigError("--ref DIR goes with --est DIR, and without MODEL and FOLDER (see `bwe eval --help`)")
    if not pairs and len(args.words) < 2:
        missing = "FOLDER" if args.words else "MODEL, FOLDER"
        raise ConfigError(f"the following arguments are required: {missing} (see `bwe eval --help`)")
    foreign = ("filter", "split", "cls", "detect") if pairs else ("input", "no_align")
    for option in foreign:
        if getattr(args, option):
            name = "class" if option == "cls" else option.replace("_", "-")
            raise ConfigError(f"--{name} {'does not go with' if pairs else 'is for'} --ref and --est (see `bwe eval --help`)")
    if pairs and len(args.cutoff or ()) > 1:
        raise ConfigError("finished estimates have one --cutoff (see `bwe eval --help`)")
    from bwe import audio

    outputs = {kind: Path(path) for kind in ("json", "csv", "html") if (path := getattr(args, kind.replace("html", "report")))}
    for path in outputs.values():
        audio.check_place(path, args.overwrite)
    if len({os.path.realpath(path) for path in outputs.values()}) < len(outputs):
        raise ConfigError("--json, --csv and --report need a file each")
    from bwe import runs
    from bwe.evaluate import compare, default_cache, evaluate

    settings: dict[str, Any] = {
        "metrics": args.metrics, "workers": args.workers, "clips": 4 if args.report else 0,
        "cache": None if args.no_cache else args.cache or default_cache(),
        "progress": _progress if sys.stderr.isatty() else None,
    }  # fmt: skip
    with _terminable():
        if pairs:
            found = compare(
                args.ref, _named_folders(args.est), cutoff_hz=args.cutoff[0] if args.cutoff else None, input=args.input,
                align=not args.no_align, baseline=args.baseline, **settings,
            )  # fmt: skip
        else:
            found = evaluate(
                args.words[:-1], args.words[-1], args.cutoff, args.filter or "brickwall", split=args.split, cls=args.cls,
                cutoff_source="detect" if args.detect else "given", baseline=args.baseline or "input", **settings,
            )  # fmt: skip
    for kind, path in outputs.items():
        text = {"json": found.to_json, "csv": found.to_csv, "html": found.to_html}[kind]()
        runs.write_text(path, text if text.endswith("\n") else text + "\n")
    if found.reused:
        _say(f"bwe: {found.reused} files were measured before (--no-cache measures them again)")
    for name, why in found.skipped.items():
        _say(f"bwe: error: {name}: {why}")
    _show(found)
    return 1 if found.skipped else 0


def _named_folders(words: Sequence[str]) -> dict[str, str]:
    """``NAME=DIR``, or ``DIR`` under its own name."""
    folders: dict[str, str] = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or os.path.isdir(word):
            name, folder = os.path.basename(os.path.abspath(word)), word
        if name in folders:
            raise ConfigError(f"--est: two folders are called {name}; give one a name (--est NAME={folder})")
        folders[name] = folder
    return folders


def _report(args: argparse.Namespace) -> int:
    from bwe import report

    page = report.report(Path(args.run_dir), Path(args.output) if args.output else None)
    _show(page, result=False)
    return 0


def _progress(done: int, total: int) -> None:
    with _dropped(sys.stderr):
        print(f"\r{done}/{total} files", end="" if done < total else "\n", file=sys.stderr, flush=True)


def _use_threads(count: int | None) -> None:
    if count:
        import torch

        torch.set_num_threads(count)


def _tell(error: BaseException, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    if isinstance(error, BweError | ImportError):
        _say(f"bwe: error: {error}")
    elif is_out_of_memory(error):
        _say("bwe: error: out of memory; free some, or use fewer --workers")
    else:
        text = str(error).splitlines()[0] if str(error) else "no message"
        _say(f"bwe: error: unexpected {type(error).__name__}: {text}; run again with --debug to see where, and report it")


def _hint(word: str, commands: Sequence[str]) -> str:
    """What somebody who typed ``bwe word`` may have meant; nothing is ever written on a guess."""
    if os.path.exists(word) or Path(word).suffix:
        return f"{word!r} is not a command; did you mean `bwe extend {word}`?"
    near = nearest(word, commands)
    return f"{word!r} is not a command; did you mean `bwe {near}`? (there are: {', '.join(commands)})"


# Where each command takes any number of words, of which argparse leaves those after an option.
_WORDS = {"extend": "inputs", "inspect": "inputs", "train": "overrides", "eval": "words"}


def _parse(parser: _Parser, commands: Sequence[str], argv: list[str]) -> argparse.Namespace:
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise ConfigError(_hint(argv[0], commands))
    args, rest = parser.parse_known_args(argv)
    if args.command in _WORDS:
        getattr(args, _WORDS[args.command]).extend(word for word in rest if not word.startswith("-"))
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        raise ConfigError(f"unknown argument {rest[0]!r} (see `bwe {args.command or ''} --help`)".replace("  ", " "))
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    if sys.stderr is None:  # closed; the words must go somewhere, and no file of ours get its number
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or an arrow that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    parser, commands = _build_parser()
    try:
        args = _parse(parser, commands, words)
        if args.command is None:
            parser.print_help(sys.stderr)
            return ConfigError.exit_code
        return int(args.run(args))
    except KeyboardInterrupt:
        _say("bwe: interrupted")
        return INTERRUPTED
    except BweError as error:
        _tell(error, debug)
        return error.exit_code
    except Exception as error:
        _tell(error, debug)
        return ConfigError.exit_code if isinstance(error, ImportError) else OUT_OF_MEMORY if is_out_of_memory(error) else 1
