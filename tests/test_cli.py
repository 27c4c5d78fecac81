"""The command line, in real processes: results, exit codes, and sentences instead of tracebacks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import bwe
from bwe import audio, cli, hub

Voice = Callable[..., np.ndarray]


def run(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bwe", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, timeout=100, env=os.environ | environment, check=False
    )


@pytest.fixture
def talk(tmp_path: Path, voice: Voice) -> Path:
    audio.write(tmp_path / "talk.wav", 0.2 * voice(16_000, 16_000), 16_000)
    return tmp_path / "talk.wav"


def test_extend_in_a_process(talk: Path, tiny_folder: Path) -> None:
    done = run("extend", "talk.wav", "-m", tiny_folder, "--threads", 1, cwd=talk.parent)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert done.stdout.startswith("talk.wav 16 kHz → talk.bwe.wav 48 kHz  0:01  known band kept to 7.")
    assert "(null −" in done.stdout
    assert done.stdout.endswith("× real time\n")
    info = sf.info(talk.with_name("talk.bwe.wav"))
    assert (info.samplerate, info.frames, info.subtype) == (48_000, 48_000, "PCM_16")
    first = talk.with_name("talk.bwe.wav").read_bytes()
    done = run("extend", "talk.wav", "-m", tiny_folder, "--overwrite", cwd=talk.parent, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert talk.with_name("talk.bwe.wav").read_bytes() == first


def test_words_that_need_no_model_are_fast_and_true(tmp_path: Path) -> None:
    code = "import sys, bwe.cli; code = bwe.cli.main(sys.argv[1:]); assert 'torch' not in sys.modules; sys.exit(code)"

    def light(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    done = light("--version")
    assert (done.returncode, done.stdout) == (0, f"bwe {bwe.__version__}\n")
    done = light("extend", "--help")
    assert done.returncode == 0
    assert "--overwrite" in done.stdout
    done = light()
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: bwe" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["talk.wav"], "'talk.wav' is not a command; did you mean `bwe extend talk.wav`?"),
        (["extned", "talk.wav"], "'extned' is not a command; did you mean `bwe extend`?"),
        (["extend"], "the following arguments are required: IN, or --manifest (see `bwe extend --help`)"),
        (["extend", "a.wav", "--outptu", "b"], "unknown argument '--outptu' (see `bwe extend --help`)"),
        (["extend", "a.wav", "--cutoff", "4k"], "argument --cutoff: '4k' is not a frequency in Hz"),
        (["extend", "a.wav", "--cutoff", "nan"], "'nan' is not a frequency in Hz"),
        (["extend", "a.wav", "--threads", "0"], "'0' is not a whole number from 1 to 999999999"),
        (["extend", "a.wav", "--threads", "9" * 20], "is not a whole number from 1 to 999999999"),
        (["extend", "a.wav", "--threads", "9" * 5_000], "is not a whole number from 1 to 999999999"),
        (["extend", "a.wav", "b.wav", "-o", "c.wav"], "c.wav: with several inputs -o must be an existing folder"),
        (
            ["extend", "a.wav", "--overwrite", "b.wav", "-o", "c.wav"],
            "c.wav: with several inputs -o must be an existing folder",
        ),
        (["extend", "a.wav", "--overwirte", "b.wav"], "unknown argument '--overwirte'"),
        (["extend", "a/x.wav", "b/x.wav", "-o", "."], "x.wav"),
        (["models", "--jsno"], "unknown argument '--jsno'"),
        (["train"], "the following arguments are required: RECIPE"),
        (["eval", "speech-48k"], "the following arguments are required: FOLDER"),
        (["eval", "speech-48k", ".", "--cutoff", "-5"], "argument --cutoff"),
    ],
)
def test_usage_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("bwe: error: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert list(tmp_path.iterdir()) == []


def test_exit_codes_and_sentences(capsys: pytest.CaptureFixture[str], talk: Path, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "page.wav").write_text("<html>not found</html>")
    (tmp_path / "empty.wav").write_bytes(b"")
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (broken / "model.safetensors").write_bytes(data)
    before = sorted(p.name for p in tmp_path.iterdir())
    cases: list[tuple[list[object], int, str]] = [
        (["nothing.wav", "-m", tiny_folder], 1, "nothing.wav: no such file"),
        ([tmp_path, "-m", tiny_folder], 1, "is a folder; give an audio file"),
        ([tmp_path / "empty.wav", "-m", tiny_folder], 1, "empty file (0 bytes)"),
        ([tmp_path / "page.wav", "-m", tiny_folder], 1, "not audio (starts with '<html>not found<')"),
        ([talk, "-m", "no-such-model"], 3, "unknown model 'no-such-model'"),
        ([talk, "-m", broken], 3, "damaged, its sha256 is not the one in config.json"),
        ([talk, "-m", tmp_path], 3, "not a model folder"),
        ([talk, "-m", tiny_folder, "--cutoff", "9000"], 2, "is above 8000 Hz, half the input's sample rate"),
        ([talk, "-m", tiny_folder, "-o", talk], 4, "talk.wav: exists already; choose another name or overwrite it"),
        ([talk, "-m", tiny_folder, "-o", tmp_path / "x.m4a"], 4, "'.m4a' is not an output format"),
        ([talk, "-m", tiny_folder, "-o", tmp_path / "no" / "x.wav"], 4, "does not exist; make it first"),
        ([talk, "-m", tiny_folder, "-o", f"{tmp_path}/no/"], 4, "the folder does not exist; make it first"),
    ]
    for arguments, code, said in cases:
        assert cli.main(["extend", *map(str, arguments)]) == code, said
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        assert captured.err.startswith("bwe: error: ")
        assert said in captured.err
        assert "Traceback" not in captured.err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_one_bad_input_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], talk: Path, tiny_folder: Path, tmp_path: Path, voice: Voice
) -> None:
    (tmp_path / "bad.wav").write_bytes(b"<html>")
    audio.write(tmp_path / "b.flac", 0.2 * voice(4_000, 8_000, 2), 8_000)
    (tmp_path / "out").mkdir()
    inputs = [str(talk), str(tmp_path / "bad.wav"), str(tmp_path / "b.flac")]
    assert cli.main(["extend", *inputs, "-m", str(tiny_folder), "-o", str(tmp_path / "out"), "--cutoff", "3500"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 2
    assert f"bwe: error: {tmp_path / 'bad.wav'}: not audio" in captured.err
    assert f"bwe: 1 of 3 inputs failed: {tmp_path / 'bad.wav'}\n" in captured.err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.bwe.flac", "talk.bwe.wav"]
    assert cli.main(["extend", *inputs[::2], "-m", str(tiny_folder), "-o", str(tmp_path / "out")]) == 4


def test_debug_shows_the_traceback(talk: Path, tiny_folder: Path) -> None:
    done = run("extend", "nothing.wav", "-m", tiny_folder, "--debug", cwd=talk.parent)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("bwe: error: nothing.wav: no such file\n")


def test_a_pickle_is_never_run(talk: Path, tiny_folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "executed"
    code = f"c__builtin__\nopen\n(V{canary}\nVw\ntR."
    for name in ("model.safetensors", "config.json", "README.md"):
        folder = tmp_path / f"evil-{name}"
        shutil.copytree(tiny_folder, folder)
        (folder / name).write_text(code)
        arguments = ["extend", talk, "-m", folder, "-o", tmp_path / f"{name}.wav"]
        assert cli.main([str(a) for a in arguments]) == (0 if name == "README.md" else 3)
    (tmp_path / "evil.wav").write_text(code)
    assert cli.main(["extend", str(tmp_path / "evil.wav"), "-m", str(tiny_folder)]) == 1
    assert not canary.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_half_file(
    tmp_path: Path, tiny_folder: Path, voice: Voice, number: signal.Signals
) -> None:
    audio.write(tmp_path / "long.wav", np.tile(0.2 * voice(480_000, 48_000), (1, 6)), 48_000)
    command = [sys.executable, "-m", "bwe", "extend", "long.wav", "-m", str(tiny_folder), "-o", "out.flac", "--cutoff", "8000"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".bwe-*.tmp")):
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert [p.name for p in tmp_path.iterdir()] == ["long.wav"]
    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert out == ""
    assert err == ("bwe: interrupted\n" if number == signal.SIGINT else "")


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [model["name"] for model in listed] == hub.list_models()
    assert cli.main(["models"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == len(listed)
    for model, line in zip(listed, captured.out.splitlines(), strict=True):
        assert line.startswith(f"{model['name']}  {model['sample_rate'] / 1000:g} kHz  ")
        assert model["summary"]


def test_models_survives_a_closed_pipe() -> None:
    pipe = f"{sys.executable} -m bwe models --json | true"
    done = subprocess.run(pipe, shell=True, capture_output=True, text=True, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize("reader", ["true", "cat > /dev/full"])
def test_a_folder_run_goes_on_when_nobody_reads(talk: Path, tiny_folder: Path, reader: str) -> None:
    """`true` closes the pipe at once; a full device refuses every line. The code is that of the work all the same."""
    (talk.parent / "in").mkdir()
    for name in "abc":
        shutil.copy(talk, talk.parent / "in" / f"{name}.wav")
    (talk.parent / "in" / "d.wav").write_text("<html>")
    words = f"{sys.executable} -m bwe extend -r in -o out -m {tiny_folder}"
    line = f"{words} > /dev/full 2> err" if "full" in reader else f"set -o pipefail; {words} 2> err | {reader}"
    done = subprocess.run(["bash", "-c", line], cwd=talk.parent, timeout=100, check=False)
    assert done.returncode == 1
    assert sorted(path.name for path in (talk.parent / "out").iterdir()) == ["a.bwe.wav", "b.bwe.wav", "c.bwe.wav"]
    said = (talk.parent / "err").read_text()
    assert "bwe: 1 of 4 inputs failed: in/d.wav\n" in said
    assert "rror" not in said.replace("bwe: error: in/d.wav", "")


def test_inspect_has_its_code_whoever_reads(talk: Path) -> None:
    line = f"set -o pipefail; {sys.executable} -m bwe inspect talk.wav none.wav talk.wav | true"
    done = subprocess.run(["bash", "-c", line], cwd=talk.parent, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (1, "bwe: error: none.wav: no such file\n")
    line = f"{sys.executable} -m bwe models > /dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "<stdout>: cannot be written (No space left on device)" in done.stderr


def test_without_stderr_nothing_is_said_elsewhere(talk: Path, tiny_folder: Path) -> None:
    for words, code in ((f"talk.wav -m {tiny_folder} -o a.wav", 0), (f"none.wav -m {tiny_folder}", 1)):
        line = f"{sys.executable} -m bwe extend {words} 2>&-"
        done = subprocess.run(["bash", "-c", line], cwd=talk.parent, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == code
        assert done.stdout.count("\n") == (code == 0)
    assert audio.read(talk.with_name("a.wav"))[1].frames == 48_000


def test_a_report_of_a_pipe_takes_no_other_place(
    capsys: pytest.CaptureFixture[str], talk: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    before = talk.read_bytes()
    (tmp_path / "list.jsonl").write_text('{"path": "talk.wav"}\n')
    for words in (
        [str(talk), "-o", "-", "--report", str(talk)],
        ["-", "-o", str(tmp_path / "o.wav"), "--report", str(tmp_path / "o.wav")],
        ["--manifest", str(tmp_path / "list.jsonl"), "--report", str(tmp_path / "list.jsonl")],
    ):
        assert cli.main(["extend", "-m", str(tiny_folder), "--overwrite", *words]) == 2
        assert "the report would be written over" in capsys.readouterr().err
    assert talk.read_bytes() == before


def test_prepare_in_a_process(capsys: pytest.CaptureFixture[str], tmp_path: Path, voice: Voice) -> None:
    (tmp_path / "set").mkdir()
    for name in "abc":
        audio.write(tmp_path / "set" / f"{name}.flac", voice(8_000, 16_000), 16_000)
    (tmp_path / "set" / "b.flac").write_bytes(b"<html>")
    (tmp_path / "set" / "manifest.csv").write_text("path,split\na.flac,train\nb.flac,train\nc.flac,valid\n")
    done = run("prepare", "set", "-o", "packed", "--rate", 16_000, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "packed\n"), done.stderr
    assert "train: 1 broken recordings left out, see packed/train/quarantine.json\n" in done.stderr
    again = ["prepare", str(tmp_path / "set"), "-o", str(tmp_path / "packed"), "--rate", "16000"]
    assert cli.main(again) == 0
    with (tmp_path / "packed" / "valid" / "shard_000.npy").open("r+b") as shard:
        shard.seek(-1, os.SEEK_END)
        shard.write(b"\x55")
    for arguments, code, said in (
        (again, 2, "valid/shard_000.npy: damaged, its checksum is not the index's"),
        ([*again[:-1], "8000"], 2, "packed at 16000 Hz, not 8000 Hz"),
        (["prepare", str(tmp_path / "nowhere"), "-o", str(tmp_path / "x")], 2, "nowhere: no such data folder"),
        (["prepare", str(tmp_path / "set")], 2, "the following arguments are required: -o/--output"),
        ([*again[:2], "-o", str(tmp_path / "set" / "a.flac" / "x")], 4, "cannot be written"),
    ):
        capsys.readouterr()
        assert cli.main(arguments) == code, said
        assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_train_says_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parent.parent / "recipes" / "smoke.py"
    for arguments, said in (
        ([str(tmp_path / "none.py")], "none.py"),
        ([str(recipe), "no_such_key=3", "--run", str(tmp_path / "run")], "no_such_key"),
        ([str(recipe), "--run", str(tmp_path / "run"), "steps"], "steps"),
    ):
        assert cli.main(["train", *arguments]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("bwe: error: ")
        assert said in captured.err
    assert list(tmp_path.iterdir()) == []


def test_eval_in_a_process(tmp_path: Path, tiny_folder: Path, voice: Voice) -> None:
    (tmp_path / "set").mkdir()
    for seed in range(2):
        audio.write(tmp_path / "set" / f"{seed}.flac", voice(48_000, 48_000, seed=seed), 48_000)
    # words before and after options
    arguments = ["eval", tiny_folder, "--cutoff", 4000, 8000, "--metrics", "lsd", "lsd_hf", "--filter", "cheby1", "brickwall"]
    outputs = ["--json", "out.json", "--csv", "out.csv", "--report", "out.html", "set"]
    done = run(*arguments, *outputs, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "LSD" in done.stdout
    figures = json.loads((tmp_path / "out.json").read_text())
    assert {(row["filter"], row["cutoff_hz"]) for row in figures["rows"]} == {
        (name, hz) for name in ("cheby1", "brickwall") for hz in (4000.0, 8000.0)
    }
    assert (tmp_path / "out.csv").read_text().count("\n") == 1 + 2 * 2 * 4
    assert "tiny-test" in (tmp_path / "out.html").read_text()
    assert len(list((tmp_path / "cache" / "bwe" / "eval").glob("*.safetensors"))) == 2


def test_eval_says_what_failed_by_its_exit_code(
    tmp_path: Path, tiny_folder: Path, voice: Voice, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    audio.write(folder / "good.flac", voice(24_000, 48_000), 48_000)
    out = tmp_path / "out.json"

    def code(*arguments: object) -> int:
        return cli.main(["eval", *map(str, arguments)])

    quick = ["--metrics", "lsd", "--cutoff", "4000", "--cache", tmp_path / "cache"]
    assert code(tiny_folder, folder, *quick, "--json", out) == 0
    before = out.read_bytes()
    assert code(tiny_folder, folder, *quick, "--json", out) == 4
    assert out.read_bytes() == before
    capsys.readouterr()
    assert code(tiny_folder, folder, *quick, "--json", out, "--overwrite") == 0
    assert "1 files were measured before" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert code(tiny_folder, folder, "--json", out, "--csv", out, "--overwrite") == 2
    (folder / "cut.flac").write_bytes((folder / "good.flac").read_bytes()[:2000])
    assert code(tiny_folder, folder, *quick) == 1
    captured = capsys.readouterr()
    assert "bwe: error: cut.flac: " in captured.err
    assert "1 files" in captured.out, "the other one is measured"
    assert code(tiny_folder, tmp_path / "nothing") == 2
    assert code(tiny_folder, folder, "--filter", "brickwal") == 2
    assert code("no-such-model", folder) == 3


def test_eval_of_folders(tmp_path: Path, voice: Voice, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gain in (("ref", 1.0), ("loud", 2.0), ("b", 0.5)):
        (tmp_path / name).mkdir()
        audio.write(tmp_path / name / "talk.wav", np.float32(gain * 0.3) * voice(24_000, 48_000), 48_000, "FLOAT")
    est = ["--est", str(tmp_path / "loud"), f"quiet={tmp_path / 'b'}"]
    options = ["--metrics", "lsd", "--no-cache", "--json", str(tmp_path / "out.json")]
    assert cli.main(["eval", "--ref", str(tmp_path / "ref"), *est, *options, "--cutoff", "6000"]) == 0
    assert "loud: delay 0.00 ms, level 6.02 dB; corrected." in capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert [s["name"] for s in figures["systems"]] == ["loud", "quiet"]
    assert figures["conditions"][0]["cutoff_hz"] == 6000
    for arguments, said in (
        (["--ref", "a"], "goes with --est"),
        (["--est", "a"], "goes with --est"),
        (["word", "--ref", "a", "--est", "b"], "without MODEL"),
        (["--ref", "a", "--est", "b", "--filter", "cheby1"], "--filter does not go with"),
        (["--ref", "a", "--est", "b", "x/b"], "two folders are called b"),
        (["--ref", "a", "--est", "b", "--cutoff", "1000", "2000"], "have one --cutoff"),
        (["tiny", ".", "--no-align"], "--no-align is for --ref"),
    ):
        assert cli.main(["eval", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_what_does_not_go_with_a_pipe_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, talk: Path, tiny_folder: Path
) -> None:
    (talk.parent / "r.jsonl").touch()
    monkeypatch.chdir(talk.parent)
    for options, code, said in (
        (["--engine", "ray"], 2, "no --engine"),
        (["-r"], 2, "--recursive does not go with -"),
        (["--report", "r.jsonl"], 4, "r.jsonl: exists already"),
        (["--report", "none/r.jsonl"], 4, "the folder none does not exist"),
    ):
        assert cli.main(["extend", talk.name, "-o", "-", "-m", str(tiny_folder), *options]) == code
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert said in err


def test_inspect_degrade_and_doctor_in_a_process(tmp_path: Path) -> None:
    example = Path(__file__).resolve().parent.parent / "examples" / "talk_48k.flac"
    done = run("degrade", example, "-o", "low.wav", "--to", 4_000, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("inspect", "low.wav", "none.wav", cwd=tmp_path)
    assert done.returncode == 1
    assert "verdict   content ends at 4." in done.stdout
    assert done.stderr == "bwe: error: none.wav: no such file\n"
    done = run("inspect", "--json", "low.wav", cwd=tmp_path)
    assert json.loads(done.stdout)["sample_rate"] == 48_000
    done = run("doctor", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["models"]) >= {"speech-48k", "speech-48k-stream", "tiny"}


def test_export_in_a_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path, talk: Path
) -> None:
    done = run("export", tiny_folder, "-o", "t.onnx", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("t.onnx  ")
    assert "opset 18  largest difference from PyTorch " in done.stdout
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(tiny_folder), "-o", "t.onnx"]) == 4
    for model, name in (("t.onnx", "a.wav"), (str(tiny_folder), "b.wav")):
        assert cli.main(["extend", str(talk), "-m", model, "-o", name]) == 0, capsys.readouterr().err
    onnx, torch = (audio.read(tmp_path / f"{name}.wav")[0] for name in "ab")
    assert np.abs(onnx - torch).max() < 4 / 32_768  # 16 bits and their dither
