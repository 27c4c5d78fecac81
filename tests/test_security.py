"""What SECURITY.md promises: files run nothing, reach nothing and cost no more than they should."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hard_inputs
import pytest
import torch
from hard_inputs import Finished, chunk, run_command, valid

from bwe import audio, infer

CONFIG, WEIGHTS = "config.json", "model.safetensors"


@pytest.fixture(scope="module")
def model(tiny: infer.Extender, tiny_folder: Path) -> Path:
    hard_inputs.warm_up(tiny_folder)
    return tiny_folder


def one_sentence(done: Finished, code: int, said: str) -> None:
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("bwe: error: ")
    assert done.stderr.count("\n") == 1
    assert "unexpected" not in done.stderr
    assert re.search(said, done.stderr), done.stderr


class Bomb:
    """Touches its canary when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def torch_zip(canary: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": Bomb(canary)}, stream)
    return stream.getvalue()


def torch_legacy(canary: Path) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": Bomb(canary)}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def numpy_array(canary: Path) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickle.dumps([Bomb(canary)])


def numpy_archive(canary: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x.npy", numpy_array(canary))
    return stream.getvalue()


BOMBS: dict[str, Callable[[Path], bytes]] = {
    **{f"protocol {n}": lambda canary, n=n: pickle.dumps(Bomb(canary), n) for n in (0, 1, 2, 3, 4, 5)},  # type: ignore[misc]
    "torch zip": torch_zip,
    "torch legacy": torch_legacy,
    "npy": numpy_array,
    "npz": numpy_archive,
}
bombs = pytest.mark.parametrize("bomb", list(BOMBS.values()), ids=list(BOMBS))


def test_the_bombs_are_live(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    for name, bomb in BOMBS.items():
        if "protocol" in name:
            pickle.loads(bomb(canary))
        else:
            (tmp_path / "bomb").write_bytes(bomb(canary))
            if "torch" in name:
                torch.load(tmp_path / "bomb", weights_only=False)
            else:
                import numpy as np

                loaded = np.load(tmp_path / "bomb", allow_pickle=True)
                _ = loaded if name == "npy" else loaded["x"]
        assert canary.exists(), name
        canary.unlink()


@bombs
def test_a_pickle_in_a_model_folder_is_never_run(bomb: Callable[[Path], bytes], model: Path, tmp_path: Path) -> None:
    canary, data = tmp_path / "ran", bomb(tmp_path / "ran")
    (tmp_path / "a.wav").write_bytes(valid("wav"))
    for name, trusted_sum in ((WEIGHTS, False), (WEIGHTS, True), (CONFIG, False)):
        folder = tmp_path / "model"
        shutil.copytree(model, folder)
        (folder / name).write_bytes(data)
        if trusted_sum:
            meta = json.loads((folder / CONFIG).read_text())
            (folder / CONFIG).write_text(json.dumps(meta | {"sha256": hashlib.sha256(data).hexdigest()}))
        done = run_command(["extend", "a.wav", "-o", "out.wav", "-m", folder], tmp_path)
        one_sentence(done, 3, re.escape(str(folder / name)))
        assert not re.search("weights_only|unsafe|torch.load|force|trust", done.stderr)
        shutil.rmtree(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav"]
    assert not canary.exists()


@bombs
def test_a_pickle_given_as_a_model_is_never_run(bomb: Callable[[Path], bytes], model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(valid("wav"))
    single = "a model is a folder with .*; this is a single file"
    for name, said in (("x.pt", single), ("x.safetensors", single), ("x.onnx", "damaged or not an ONNX file")):
        (tmp_path / name).write_bytes(bomb(tmp_path / "ran"))
        done = run_command(["extend", "a.wav", "-o", "out.wav", "-m", tmp_path / name], tmp_path)
        one_sentence(done, 3, f"{re.escape(str(tmp_path / name))}: {said}")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out.wav").exists()


@bombs
def test_a_pickle_given_as_audio_is_never_run(bomb: Callable[[Path], bytes], model: Path, tmp_path: Path) -> None:
    for suffix in ("wav", "flac", "m4a"):
        path = tmp_path / f"x.{suffix}"
        path.write_bytes(bomb(tmp_path / "ran"))
        one_sentence(run_command(["extend", path, "-o", "out.wav", "-m", model], tmp_path), 1, "not audio|damaged|support")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out.wav").exists()


@pytest.mark.parametrize(
    "name", ["$(touch ran).wav", "`touch ran`.wav", "; touch ran;.wav", "| touch ran |.wav", "&& touch ran.wav"]
)
def test_a_file_name_is_never_a_command(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(valid("wav"))
    assert run_command(["extend", name, "-m", model], tmp_path).code == 0
    assert len(list(tmp_path.iterdir())) == 2
    assert not (tmp_path / "ran").exists()


HUGE = 10**9


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_target_": "os.system", "command": "touch ran"}, "_target_"),
        ({"config": {"_target_": "os.system", "command": "touch ran"}}, "_target_"),
        ({"arch": "os.system"}, "unknown arch"),
        ({"arch": "bwe.generators.SEANet"}, "unknown arch"),
        ({"arch": "../../evil"}, "unknown arch"),
        ({"arch": ["seanet"]}, "arch must be str"),
        ({"format": 10**30}, "newer|format"),
        ({"format": True}, "format"),
        ({"sample_rate": -1}, "sample_rate"),
        ({"sha256": "0" * 64}, "sha256"),
        ({"config": {"channels": [HUGE, HUGE, HUGE]}}, "4096 channels"),
        ({"config": {"channels": [4096, 4096, 4096]}}, "do not fit the config"),
        ({"config": {"channels": []}}, "SEANet"),
        ({"config": {"channels": ["12", 16, 24]}}, "channels"),
        ({"config": {"channels": [12, 16, float("nan")]}}, "channels"),
        ({"config": {"bands": 0}}, "256 bands"),
        ({"config": {"bands": -24}}, "256 bands"),
        ({"config": {"bands": HUGE}}, "256 bands"),
        ({"config": {"bands": 1e400}}, "bands must be int"),
        ({"config": {"blocks": HUGE}}, "64 bottleneck blocks"),
        ({"config": {"blocks": True}}, "blocks must be int"),
        ({"config": {"strides": [0, 0]}}, "strides"),
        ({"config": {"strides": [HUGE, HUGE]}}, "config.json|fit the config"),
        ({"config": {"kernels": [[HUGE + 1], [3]]}}, "config.json|fit the config"),
        ({"config": {"kernels": [[-3], [3]]}}, CONFIG),
        ({"config": {"kernels": [[3] * 100_000, [3]]}}, CONFIG),
        ({"config": {"dilations": [0]}}, CONFIG),
        ({"config": {"dilations": []}}, CONFIG),
        ({"config": {"dilations": [HUGE]}}, CONFIG),
        ({"config": {"encoder_dilations": [1] * 100_000}}, CONFIG),
        ({"config": {"level_frames": 0}}, CONFIG),
        ({"config": {"level_frames": HUGE * 8}}, CONFIG),
        ({"config": {"conditioning": HUGE}}, "config.json|fit the config"),
        ({"config": {"conditioning": -1}}, CONFIG),
        ({"config": {"sample_rate": HUGE}}, "sample_rate|Hz"),
        ({"config": {"sample_rate": 10**400}}, CONFIG),
    ],
    ids=lambda value: None if isinstance(value, str) else json.dumps(value)[:60],
)
def test_a_config_that_asks_for_too_much_is_refused(change: dict[str, Any], said: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    meta = json.loads((folder / CONFIG).read_text())
    config = meta["config"] | change.get("config", {})
    (folder / CONFIG).write_text(json.dumps(meta | change | {"config": config}))
    (tmp_path / "a.wav").write_bytes(valid("wav"))
    started = time.perf_counter()
    done = run_command(["extend", "a.wav", "-o", "out.wav", "-m", folder], tmp_path, memory=2 << 30)
    one_sentence(done, 3, said)
    assert len(done.stderr) < 2_000
    assert time.perf_counter() - started < 20
    assert not (tmp_path / "out.wav").exists()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5_000,
        '{"format": ' + "9" * 100_000 + "}",
        '"\\ud800"',
        "\0" * 100,
        "NaN",
        "[]",
        "",
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_hostile_json_is_refused(text: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / CONFIG).write_text(text)
    one_sentence(run_command(["extend", "a.wav", "-m", folder], tmp_path, memory=2 << 30), 3, CONFIG)


def _safetensors(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


@pytest.mark.parametrize(
    "data",
    [
        _safetensors(b"{}", 1 << 62),
        _safetensors(b"{}", (1 << 64) - 1),
        _safetensors(b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4]}}', body=bytes(4)),
        _safetensors(b'{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}'),
        _safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000]}}', body=bytes(4)),
        _safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}', body=bytes(4)),
        _safetensors(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', body=bytes(4)),
        _safetensors(b'{"a":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}', body=bytes(4)),
        _safetensors(b'{"__metadata__":{"x":1}}'),
        _safetensors(b"{" * 50_000),
        _safetensors(b"{}"),
    ],
)
def test_hostile_weights_are_refused(data: bytes, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    (folder / WEIGHTS).write_bytes(data)
    meta = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(meta | {"sha256": hashlib.sha256(data).hexdigest()}))
    one_sentence(run_command(["extend", "a.wav", "-m", folder], tmp_path, memory=2 << 30), 3, "safetensors|fit the config")


def test_another_machine_cannot_be_reached(network_log: Path) -> None:
    for address in (("192.0.2.1", 80), ("bwe.example", 443)):
        with pytest.raises(OSError, match="tests reach no network"):
            socket.create_connection(address, timeout=1)
    with socket.socket() as stream, pytest.raises(OSError, match="tests reach no network"):
        stream.connect_ex(("192.0.2.1", 80))
    with socket.socket(type=socket.SOCK_DGRAM) as packets, pytest.raises(OSError, match="tests reach no network"):
        packets.sendto(b"x", ("192.0.2.1", 53))
    with socket.socket(socket.AF_INET6) as stream, pytest.raises(OSError, match="tests reach no network"):
        stream.connect(("2001:db8::1", 80))
    assert len(network_log.read_text().splitlines()) == 5
    network_log.write_text("")


def test_a_child_process_cannot_reach_another_machine(network_log: Path) -> None:
    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1/', timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "tests reach no network: connect to 192.0.2.1:80" in done.stderr
    assert len(network_log.read_text().splitlines()) == 1
    network_log.write_text("")


def test_this_machine_can_be_reached(web: Web) -> None:
    with socket.create_connection(("localhost", web.port), timeout=5):
        pass
    code = f"import socket; socket.create_connection(('127.0.0.1', {web.port}), timeout=5)"
    subprocess.run([sys.executable, "-c", code], timeout=60, check=True)


def test_the_sitecustomize_of_an_environment_still_runs(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.was_here = True")
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path)])
    code = "import socket, sys; print(sys.was_here, socket._bwe_blocked)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
                          timeout=60, check=True)  # fmt: skip
    assert done.stdout == "True True\n"


class Web:
    """A server on this machine that counts what is asked of it."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(valid("wav"))

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.close()


def playlists(target: str) -> dict[str, str]:
    """Files that name another file or address, of every kind that FFmpeg would follow."""
    return {
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
        "key": f'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n',
        "pls": f"[playlist]\nFile1={target}\nNumberOfEntries=1\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
        "mpd": f'<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet'
        f' mimeType="audio/mp4"><Representation id="1" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
        "ism": f'<SmoothStreamingMedia><StreamIndex Url="{target}"/></SmoothStreamingMedia>',
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>',
        "smil": f'<smil><body><audio src="{target}"/></body></smil>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
        "url": target,
        "rtsp": f"RTSPtext\n{target}\n",
    }


@pytest.mark.parametrize("kind", list(playlists("")))
def test_a_playlist_reaches_nothing(kind: str, web: Web, model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(valid("wav"))
    here = (tmp_path / "secret.wav").as_uri()
    for target, suffix in ((web.url("a.ts"), kind), (web.url("a.ts"), "m4a"), ("secret.wav", kind), (here, "wav")):
        (tmp_path / f"list.{suffix}").write_text(playlists(target)[kind])
        one_sentence(run_command(["extend", f"list.{suffix}", "-o", "out.wav", "-m", model], tmp_path), 1, "not audio")
    assert not (tmp_path / "out.wav").exists()
    assert web.asked == []


@pytest.mark.parametrize(
    "name",
    [
        "http://127.0.0.1:{port}/a.wav",
        "tcp://127.0.0.1:{port}",
        "concat:secret.wav",
        "file:secret.wav",
        "pipe:0",
        "data:audio/wav;base64,UklGRg==",
        "subfile,,start,0,end,0,,:secret.wav",
    ],
)
def test_an_address_is_only_ever_a_file_name(name: str, web: Web, model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(valid("wav"))
    done = run_command(["extend", name.format(port=web.port), "-o", "out.wav", "-m", model], tmp_path, stdin=valid("wav"))
    one_sentence(done, 1, "no such file")
    assert web.asked == []


def _with_reference(data: bytes, url: str) -> bytes:
    """An MPEG-4 file whose samples are said to be at ``url`` (a data reference entry that is not self-contained)."""

    def rebuilt(body: bytes) -> bytes:
        made, at = b"", 0
        while at + 8 <= len(body):
            (length,), name = struct.unpack(">I", body[at : at + 4]), body[at + 4 : at + 8]
            content = body[at + 8 : at + length]
            if name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
                content = rebuilt(content)
            elif name == b"dref":
                entry = bytes(4) + url.encode() + b"\0"
                content = content[:8] + struct.pack(">I", len(entry) + 8) + b"url " + entry
            made += struct.pack(">I", len(content) + 8) + name + content
            at += length
        return made

    return rebuilt(data)


@pytest.mark.parametrize("target", ["web", "relative", "absolute"])
def test_a_data_reference_reaches_nothing(target: str, web: Web, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    secret = tmp_path / "secret.wav"
    secret.write_bytes(valid("wav"))
    url = {"web": web.url("a.mp4"), "relative": "secret.wav", "absolute": secret.as_uri()}[target]
    data = _with_reference(valid("m4a"), url)
    assert url.encode() in data
    (tmp_path / "a.m4a").write_bytes(data)
    (tmp_path / "own.m4a").write_bytes(valid("m4a"))
    done = run_command(["extend", "a.m4a", "-o", "out.wav", "-m", model], tmp_path)
    assert done.code == 0, done.stderr
    # The file's own 0.768 s; those of the other are 0.750 s.
    assert audio.read(tmp_path / "out.wav")[1].seconds == audio.read(tmp_path / "own.m4a")[1].seconds
    assert web.asked == []


def test_control_characters_out_of_files_are_not_printed(model: Path, tmp_path: Path) -> None:
    escape = "\x1b]0;pwned\x07\x1b[2J"
    info = chunk(b"LIST", b"INFO" + chunk(b"INAM", escape.encode() + b"\0"))
    (tmp_path / "tags.wav").write_bytes(hard_inputs.wav(info))
    (tmp_path / "text.wav").write_bytes(escape.encode() * 20)
    folder = tmp_path / f"model{escape}"
    shutil.copytree(model, folder)
    meta = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(meta | {"arch": escape, escape: 1}))
    for words in (
        ["extend", "tags.wav", "-o", "a.wav", "-m", model],
        ["extend", "text.wav", "-o", "b.wav", "-m", model],
        ["extend", f"{escape}.wav", "-m", model],
        ["extend", "tags.wav", "-o", f"{escape}.wav", "-m", model],
        ["extend", "tags.wav", "-o", f"{escape}/c.wav", "-m", model],
        ["extend", "tags.wav", "-o", "d.wav", "-m", folder],
        ["extend", "tags.wav", "-o", "e.wav", "-m", escape],
        ["extend", "tags.wav", f"--{escape}"],
        [escape],
    ):
        done = run_command(words, tmp_path)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout + done.stderr), (words, done)
        assert (done.stdout + done.stderr).count("\n") == 1, (words, done)
