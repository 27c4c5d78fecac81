"""The command ``bwe``: results on stdout, words on stderr, one sentence for what goes wrong, and an exit code that is true.

0 all done, 1 an input failed (the others are done), 2 usage or config, 3 model, 4 output, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bwe import __version__
from bwe.errors import BweError, ConfigError, OutputError

INTERRUPTED, TERMINATED = 130, 143


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message} (see `{self.prog} --help`)")


def _build_parser() -> _Parser:
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
    extend.add_argument("inputs", nargs="+", metavar="IN", help="audio file (WAV, FLAC, MP3, Ogg, Opus, AIFF, ...)")
    extend.add_argument(
        "-o", "--output", metavar="OUT", help="output file, or a folder (default: IN's name with .bwe, next to IN)"
    )
    extend.add_argument("-m", "--model", default=None, help="shipped name or checkpoint folder (default: speech-48k)")
    extend.add_argument("--cutoff", type=_cutoff, default=None, metavar="HZ|auto", help="where the known band ends")
    extend.add_argument("--overwrite", action="store_true", help="replace existing outputs")
    extend.add_argument("--threads", type=_positive, metavar="N", help="CPU threads to use")

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

    evaluate = add("eval", _evaluate, "Measure a model over a folder of full-band audio.")
    evaluate.add_argument("model", metavar="MODEL", help="shipped name or checkpoint folder")
    evaluate.add_argument("folder", metavar="FOLDER", help="full-band reference audio, searched recursively")
    evaluate.add_argument("--cutoff", type=_frequency, nargs="+", metavar="HZ", help="cut-offs to simulate")
    evaluate.add_argument("--filter", default="brickwall", metavar="NAME", help="what removes the band (default: brickwall)")
    evaluate.add_argument("--split", metavar="NAME", help="only this split of the folder's manifest.csv")
    evaluate.add_argument("--class", metavar="NAME", dest="cls", help="only this class of the folder's manifest.csv")
    evaluate.add_argument("--detect", action="store_true", help="let the model find the cut-off instead of telling it")
    evaluate.add_argument("--json", metavar="FILE", dest="json_path", help="write all figures to this file")
    evaluate.add_argument("--overwrite", action="store_true", help="replace an existing FILE")
    evaluate.add_argument("--threads", type=_positive, metavar="N", help="CPU threads to use")

    report = add("report", _report, "Write one HTML page about a training run.")
    report.add_argument("run_dir", metavar="RUN", help="folder of the run, such as runs/speech-48k")
    report.add_argument("-o", "--output", metavar="FILE", help="the page (default: report.html in RUN)")
    return parser


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
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _extend(args: argparse.Namespace) -> int:
    many = len(args.inputs) > 1
    if args.output is not None and not os.path.isdir(args.output):
        if args.output.endswith(("/", os.sep)):
            raise OutputError(f"{args.output}: the folder does not exist; make it first")
        if many:
            raise ConfigError(f"{args.output}: with several inputs -o must be an existing folder")
    names = [Path(name).name for name in args.inputs]
    twice = next((name for name in names if args.output is not None and names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two inputs are called {twice}: in {args.output} one would replace the other")
    from bwe import infer

    _use_threads(args.threads)
    model = infer.load(args.model or infer.DEFAULT_MODEL)
    failed: list[tuple[str, int]] = []
    for name in args.inputs:
        try:
            with _terminable():
                report = infer.extend(name, args.output, model, args.cutoff, args.overwrite)
        except Exception as error:
            if not many:
                raise
            _tell(error, args.debug)
            failed.append((name, error.exit_code if isinstance(error, BweError) else 1))
        else:
            print(report, flush=True)
    if not failed:
        return 0
    _say(f"bwe: {len(failed)} of {len(args.inputs)} inputs failed: {', '.join(name for name, _ in failed)}")
    codes = {code for _, code in failed}
    return codes.pop() if len(codes) == 1 else 1


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
        print(json.dumps(found, indent=1))
        return 0
    if not found:
        _say("bwe: no models in this installation")
    for model in found:
        print(f"{model['name']}  {model['sample_rate'] / 1000:g} kHz  {model['bytes'] / 1e6:.1f} MB  {model['summary']}")
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from bwe import data

    with _terminable():
        data.prepare(args.folder, args.output, args.rate, args.cls, _say)
    for split in ("train", "valid"):
        data.verify(Path(args.output) / split)
    print(args.output)
    return 0


def _train(args: argparse.Namespace) -> int:
    from bwe import train

    print(train.main(args.recipe, args.overrides, args.run_dir, args.resume))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    out = Path(args.json_path) if args.json_path else None
    if out is not None:
        if out.is_dir() or not out.parent.is_dir():
            raise OutputError(f"{out}: is a folder or lies in none; give a file name in an existing folder")
        if out.exists() and not args.overwrite:
            raise OutputError(f"{out}: exists already; choose another name or overwrite it (--overwrite)")
    from bwe.evaluate import evaluate

    _use_threads(args.threads)
    table = evaluate(
        args.model,
        args.folder,
        **({"cutoffs": args.cutoff} if args.cutoff else {}),
        filter=args.filter,
        split=args.split,
        cls=args.cls,
        cutoff_source="detect" if args.detect else "given",
        progress=_progress if sys.stderr.isatty() else None,
    )
    print(table)
    if out is not None:
        temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(table.to_json() + "\n", encoding="utf-8")
            os.replace(temporary, out)
        except OSError as error:
            raise OutputError(f"{out}: cannot be written ({error.strerror})") from None
        finally:
            temporary.unlink(missing_ok=True)
    return 0


def _report(args: argparse.Namespace) -> int:
    from bwe import report

    print(report.report(Path(args.run_dir), Path(args.output) if args.output else None))
    return 0


def _progress(done: int, total: int) -> None:
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
    elif isinstance(error, MemoryError):
        _say("bwe: error: out of memory; cut the input into shorter files")
    else:
        text = str(error).splitlines()[0] if str(error) else "no message"
        _say(f"bwe: error: unexpected {type(error).__name__}: {text}; run again with --debug to see where, and report it")


def _hint(word: str, commands: Sequence[str]) -> str:
    """What somebody who typed ``bwe word`` may have meant; nothing is ever written on a guess."""
    if os.path.exists(word) or Path(word).suffix:
        return f"{word!r} is not a command; did you mean `bwe extend {word}`?"
    near = difflib.get_close_matches(word, commands, n=1, cutoff=0.0)[0]
    return f"{word!r} is not a command; did you mean `bwe {near}`? (there are: {', '.join(commands)})"


def _parse(parser: _Parser, argv: list[str]) -> argparse.Namespace:
    commands = ("extend", "models", "prepare", "train", "eval", "report")
    if argv and not argv[0].startswith("-") and argv[0] not in commands:
        raise ConfigError(_hint(argv[0], commands))
    args, rest = parser.parse_known_args(argv)
    if args.command == "train":  # argparse takes no positionals after an option
        args.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        raise ConfigError(f"unknown argument {rest[0]!r} (see `bwe {args.command or ''} --help`)".replace("  ", " "))
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or an arrow that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="replace")
    parser = _build_parser()
    try:
        args = _parse(parser, words)
        if args.command is None:
            parser.print_help(sys.stderr)
            return ConfigError.exit_code
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        _say("bwe: interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone: nothing left to say, and no noise at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except BweError as error:
        _tell(error, debug)
        return error.exit_code
    except Exception as error:
        _tell(error, debug)
        return ConfigError.exit_code if isinstance(error, ImportError) else 1
