"""ONNX files: they say what the module says, stream, carry what is needed to run them, and bring nothing else along."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from bwe import dsp, export, generators, infer, layers, onnx_backend
from bwe.errors import AudioError, ConfigError, ModelError, OutputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

# An export takes ten seconds, and several times that on a busy machine.
pytestmark = pytest.mark.timeout(400)

SR = 48_000
HOP = 384
SILENCE = 10 ** (-90 / 20)


def seanet(causal: bool) -> generators.SEANet:
    """A tiny generator with weight norm, whose head is as loud as a trained one's and which listens to the cut-off."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], causal=causal)).eval()
        with torch.no_grad():
            assert net.head.bias is not None
            for name, parameter in net.named_parameters():
                if name.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.2)
            for film in (*net.encoder_film, *net.bottleneck_film, *net.decoder_film):
                torch.nn.init.normal_(film.affine.weight, std=0.3)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def centred(folder: Path) -> export.Exported:
    return export.export(seanet(False), folder / "centred.onnx")


@pytest.fixture(scope="module")
def streaming(folder: Path) -> export.Exported:
    return export.export(seanet(True), folder / "stream.onnx", streaming=True)


@pytest.fixture
def stored(causal: bool, request: pytest.FixtureRequest) -> Path:
    written: export.Exported = request.getfixturevalue("streaming" if causal else "centred")
    return written.path


def signal(frames: int, items: int = 1, seed: int = 0) -> np.ndarray:
    """Noise that comes and goes, with a pause of digital silence."""
    rng = np.random.default_rng(seed)
    envelope = np.clip(np.sin(np.arange(frames) / 2500), 0, 1)
    return (0.2 * envelope * rng.standard_normal((items, 1, frames))).astype(np.float32)


def module_output(net: generators.SEANet, x: np.ndarray, cutoff_hz: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return net(torch.from_numpy(x), torch.from_numpy(cutoff_hz)).numpy()


@pytest.mark.parametrize("causal", [False, True])
def test_a_file_says_what_the_module_says(stored: Path, causal: bool) -> None:
    net, runner = seanet(causal), onnx_backend.OnnxGenerator(stored)
    lengths = [0, 1, HOP - 1, HOP, HOP + 1, *np.random.default_rng(1).integers(2 * HOP, 40 * HOP, 4)]
    for seed, frames in enumerate(lengths):
        x = signal(int(frames), 2, seed)
        cutoff_hz = np.array([3000.0, 11_500.0])
        y = runner(x, cutoff_hz)
        assert y.shape == x.shape
        assert y.dtype == np.float32
        expected = module_output(net, x, cutoff_hz)
        assert np.abs(y - expected).max(initial=0) < 1e-5, frames
    with torch.no_grad():
        net.head.parametrizations.weight.original0.zero_()  # type: ignore[union-attr]
    muted = module_output(net, x, cutoff_hz)
    assert np.abs(expected - muted).max() > 0.05, "the generator put nothing into the missing band"


def test_blocks_join_to_the_whole(streaming: export.Exported) -> None:
    net, runner = seanet(True), onnx_backend.OnnxGenerator(streaming.path)
    rng = np.random.default_rng(2)
    x, cutoff_hz = signal(60 * HOP), 4000.0
    edges = np.unique(np.concatenate([[0, 1, 2, 3, 60], rng.integers(4, 60, 20)])) * HOP
    stream, other = runner.stream(cutoff_hz), runner.stream(np.array([9000.0, 2000.0]))
    blocks = []
    for start, stop in itertools.pairwise(edges):
        blocks.append(stream.advance(x[..., start:stop]))
        other(signal(HOP, 2, seed=int(start)))
    late = np.concatenate(blocks, axis=-1)
    whole = module_output(net, x, np.array([cutoff_hz]))
    assert np.abs(late[..., net.delay :] - whole[..., : -net.delay]).max() < 1e-5
    assert np.array_equal(runner.stream(cutoff_hz).advance(x[..., :HOP]), blocks[0]), "a new stream starts from silence"
    assert stream.advance(x[..., :0]).shape == (1, 1, 0)
    for shape in ((1, 1, HOP + 1), (2, 1, HOP), (1, HOP)):
        with pytest.raises(AudioError, match="blocks of shape"):
            stream.advance(np.zeros(shape, np.float32))


def test_signals_stream_side_by_side(streaming: export.Exported) -> None:
    runner, x, cutoff_hz = onnx_backend.OnnxGenerator(streaming.path), signal(8 * HOP, 2), np.array([3000.0, 9000.0])
    both = runner.stream(cutoff_hz)
    together = np.concatenate([both(x[..., : 3 * HOP]), both(x[..., 3 * HOP :])], axis=-1)
    for i in range(2):
        alone = runner.stream(cutoff_hz[i])
        assert np.array_equal(together[i, :, : 3 * HOP], alone(x[i : i + 1, :, : 3 * HOP])[0])
        assert np.array_equal(together[i, :, 3 * HOP :], alone(x[i : i + 1, :, 3 * HOP :])[0])


def test_states_go_by_their_names(streaming: export.Exported) -> None:
    """Whatever the order of the inputs in the file."""
    proto, x = proto_of(streaming), signal(6 * HOP)
    inputs = list(proto.graph.input)[::-1]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    other = onnx_backend.OnnxGenerator(proto.SerializeToString())
    assert np.array_equal(other.stream(4000.0)(x), onnx_backend.OnnxGenerator(streaming.path).stream(4000.0)(x))


def test_an_extender_over_a_streaming_file(streaming: export.Exported) -> None:
    """Whole signals and streams, of several channels, say what PyTorch says."""
    onnx_model, torch_model = infer.load(streaming.path), infer.Extender(seanet(True))
    x = signal(9_000, 3)[:, 0]
    whole = torch_model(x, 16_000)
    assert np.abs(onnx_model(x, 16_000) - whole).max() < 1e-5
    joined = np.concatenate(list(onnx_model.stream(np.array_split(x, 31, axis=-1), 16_000)), axis=-1)
    assert np.abs(joined - whole).max() < 1e-4
    assert onnx_model.latency_seconds(16_000) == torch_model.latency_seconds(16_000)


@pytest.mark.parametrize("causal", [False, True])
def test_silence_is_silent(stored: Path, causal: bool) -> None:
    y = onnx_backend.OnnxGenerator(stored)(np.zeros((1, 1, 30 * HOP), np.float32), np.array([4000.0]))
    assert np.abs(y).max() < SILENCE


@pytest.mark.parametrize("causal", [False, True])
def test_a_file_tells_what_it_is(stored: Path, causal: bool) -> None:
    net, path = seanet(causal), stored
    runner = onnx_backend.OnnxGenerator(path)
    for name in ("sample_rate", "hop", "delay", "latency", "receptive_field", "causal", "config"):
        assert getattr(runner, name) == getattr(net, name), name
    assert runner.streaming == causal
    assert runner.precision == "float32"
    assert runner.meta["arch"] == "seanet"
    assert len(runner.meta["sha256"]) == 64
    proto = onnx.load(path, load_external_data=False)
    onnx.checker.check_model(proto)
    properties = {prop.key: prop.value for prop in proto.metadata_props}
    assert json.loads(properties["config"])["bands"] == 24
    assert proto.opset_import[0].version == export.OPSET


def test_what_was_written_is_told(centred: export.Exported) -> None:
    data = centred.path.read_bytes()
    assert centred.bytes == len(data)
    assert centred.sha256 == hashlib.sha256(data).hexdigest()
    assert centred.max_difference < 1e-5
    assert [p.suffix for p in centred.path.parent.iterdir()] == [".onnx"] * len(list(centred.path.parent.iterdir()))


def test_exporting_leaves_the_module_as_it_was(folder: Path) -> None:
    net = seanet(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(ConfigError, match="cannot stream"):
        export.export(net, folder / "refused.onnx", streaming=True)
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not (folder / "refused.onnx").exists()


_PLAY = """
import sys
x = np.load("x.npy")
session = onnxruntime.InferenceSession("model.onnx")
if sys.argv[1] == "True":
    blocks = x.reshape(-1, 16, 24)
    y = np.concatenate(list(run(blocks, 4000.0))).reshape(x.shape)
else:
    y = run(x, np.array([4000.0]))
np.save("y.npy", y)
assert "torch" not in sys.modules and "bwe" not in sys.modules
"""


@pytest.mark.parametrize("causal", [False, True])
def test_the_text_in_the_file_is_enough_to_run_it(stored: Path, causal: bool, tmp_path: Path) -> None:
    x = signal(30 * HOP if causal else 30 * HOP + 123)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "model.onnx").write_bytes(stored.read_bytes())
    runner = onnx_backend.OnnxGenerator(stored)
    (tmp_path / "play.py").write_text(runner.how_to_run + _PLAY)
    subprocess.run([sys.executable, "-I", "play.py", str(causal)], cwd=tmp_path, check=True, timeout=60)
    y = np.load(tmp_path / "y.npy")
    expected = module_output(seanet(causal), x, np.array([4000.0]))
    late = runner.delay if causal else 0
    assert np.abs(y[..., late:] - expected[..., : x.shape[-1] - late]).max() < 1e-5


def test_another_network_is_not_the_same(streaming: export.Exported) -> None:
    net = layers.fold_weight_norm(seanet(True))
    assert isinstance(net, generators.SEANet)
    runner = onnx_backend.OnnxGenerator(streaming.path)
    assert export._difference(runner, net) < export.MAX_DIFFERENCE
    with torch.no_grad():
        net.head.weight *= 1.1
    assert export._difference(runner, net) > export.MAX_DIFFERENCE
    with torch.no_grad():
        net.head.weight.fill_(torch.nan)
    assert export._difference(runner, net) == np.inf


@pytest.mark.parametrize("threads", [1, 2])
def test_threads(centred: export.Exported, threads: int) -> None:
    runner = onnx_backend.OnnxGenerator(centred.path.read_bytes(), threads=threads)
    assert runner._session.get_session_options().intra_op_num_threads == threads
    x = signal(5000)
    assert np.abs(runner(x, np.array([4000.0])) - module_output(seanet(False), x, np.array([4000.0]))).max() < 1e-5
    with pytest.raises(ConfigError, match="threads"):
        onnx_backend.OnnxGenerator(centred.path, threads=0)


def test_eight_bits(folder: Path, voice: Callable[..., np.ndarray]) -> None:
    clips = [voice(SR, SR, seed=seed)[0] for seed in range(3)]
    written = export.export(seanet(True), folder / "int8.onnx", int8=clips)
    assert 1e-4 < written.max_difference < 0.1
    runner = onnx_backend.OnnxGenerator(written.path)
    assert (runner.precision, runner.streaming, runner.delay) == ("int8", False, seanet(True).delay)
    assert np.abs(runner(np.zeros((1, 1, SR), np.float32), np.array([4000.0]))).max() < SILENCE
    kinds = [node.op_type for node in onnx.load(written.path).graph.node]
    assert kinds.count("QuantizeLinear") > 5
    x = dsp.band_limit(torch.from_numpy(voice(SR, SR)), SR, 4000.0).numpy()[None]
    exact, rough = module_output(seanet(True), x, np.array([4000.0])), runner(x, np.array([4000.0]))
    assert 20 * np.log10(np.linalg.norm(rough - exact) / np.linalg.norm(exact - x)) < -20
    with pytest.raises(ConfigError, match="whole signals only"):
        runner.stream(4000.0)


def test_eight_bits_in_a_stream(folder: Path, voice: Callable[..., np.ndarray]) -> None:
    clips = [voice(SR, SR, seed=seed)[0] for seed in range(2)]
    written = export.export(seanet(True), folder / "int8-stream.onnx", streaming=True, int8=clips)
    runner, net = onnx_backend.OnnxGenerator(written.path), seanet(True)
    assert (runner.precision, runner.streaming) == ("int8", True)
    kinds = [node.op_type for node in onnx.load(written.path).graph.node]
    assert kinds.count("QuantizeLinear") > 5
    x = dsp.band_limit(torch.from_numpy(voice(SR // 2, SR)), SR, 4000.0).numpy()[None]
    exact, rough = module_output(net, x, np.array([4000.0])), runner(x, 4000.0)
    assert 20 * np.log10(np.linalg.norm(rough - exact) / np.linalg.norm(exact - x)) < -20


def test_nothing_to_calibrate_with(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        export._calibration_clips(tmp_path / "nowhere", SR)
    (tmp_path / "notes.txt").write_text("no audio")
    assert export._calibration_clips(tmp_path, SR) == []


def proto_of(written: export.Exported) -> onnx.ModelProto:
    return onnx.load(written.path)


def _outside(proto: onnx.ModelProto, path: Path) -> None:
    tensor = proto.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, str(path))
    tensor.ClearField("raw_data")


def _outside_attribute(proto: onnx.ModelProto, path: Path) -> None:
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "hidden")
    onnx.external_data_helper.set_external_data(tensor, str(path))
    tensor.ClearField("raw_data")
    branch = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [])
    proto.graph.node.append(onnx.helper.make_node("If", ["x"], ["unused"], then_branch=branch, else_branch=branch))


def _foreign_operator(proto: onnx.ModelProto, _: Path) -> None:
    proto.graph.node.append(onnx.helper.make_node("EPContext", ["x"], ["unused"], domain="com.microsoft"))


def _own_operator(proto: onnx.ModelProto, _: Path) -> None:
    opset = [onnx.helper.make_opsetid("", 18)]
    proto.functions.append(onnx.helper.make_function("", "Twice", ["a"], ["b"], [], opset))


def _no_metadata(proto: onnx.ModelProto, _: Path) -> None:
    del proto.metadata_props[:]


def _other_hop(proto: onnx.ModelProto, _: Path) -> None:
    next(prop for prop in proto.metadata_props if prop.key == "hop").value = "100"


def _endless_delay(proto: onnx.ModelProto, _: Path) -> None:
    for prop in proto.metadata_props:
        if prop.key in ("delay", "receptive_field", "latency"):
            prop.value = "5000000"


def _fewer_bands(proto: onnx.ModelProto, _: Path) -> None:
    """All metadata of another network, which fit one another."""
    other = generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], causal=True, bands=12))
    for prop in proto.metadata_props:
        if prop.key == "config":
            prop.value = json.dumps(dataclasses.asdict(other.config))
        elif prop.key in ("hop", "delay", "latency", "receptive_field"):
            prop.value = str(getattr(other, prop.key))


def _double_state(proto: onnx.ModelProto, _: Path) -> None:
    proto.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    cast = onnx.helper.make_node("Cast", ["single"], [proto.graph.output[1].name], to=onnx.TensorProto.DOUBLE)
    for node in proto.graph.node:
        node.output[:] = ["single" if name == proto.graph.output[1].name else name for name in node.output]
        node.input[:] = ["single" if name == proto.graph.output[1].name else name for name in node.input]
    proto.graph.node.append(cast)


def _huge_config(proto: onnx.ModelProto, _: Path) -> None:
    next(prop for prop in proto.metadata_props if prop.key == "config").value = "[" * 100_000


def _other_outputs(proto: onnx.ModelProto, _: Path) -> None:
    del proto.graph.output[-1]


def _telling(change: Callable[[onnx.ModelProto, Path], None]) -> Callable[[onnx.ModelProto, Path], None]:
    """The same change of the graph within the graph."""

    def changed(proto: onnx.ModelProto, path: Path) -> None:
        prop = next(prop for prop in proto.metadata_props if prop.key == "telling")
        inner = onnx.ModelProto.FromString(base64.b64decode(prop.value))
        change(inner, path)
        prop.value = base64.b64encode(inner.SerializeToString()).decode()

    return changed


def _no_telling(proto: onnx.ModelProto, _: Path) -> None:
    next(prop for prop in proto.metadata_props if prop.key == "telling").value = "it was here"


def _no_weights(proto: onnx.ModelProto, _: Path) -> None:
    del proto.graph.initializer[:]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_outside, "in another file"),
        (_outside_attribute, "in another file"),
        (_foreign_operator, r"foreign operator com\.microsoft\.EPContext"),
        (_own_operator, "operators of its own"),
        (_no_metadata, "not an ONNX file that bwe wrote"),
        (_other_hop, "contradict"),
        (_endless_delay, "contradict"),
        (_fewer_bands, "not those of its metadata"),
        (_double_state, "not those of its metadata"),
        (_huge_config, "not an ONNX file that bwe wrote"),
        (_other_outputs, "not those of its metadata"),
        (_no_weights, "onnxruntime refuses it"),
        (_no_telling, "not a streaming file that this version of bwe wrote"),
        (_telling(_outside), "in another file"),
        (_telling(_foreign_operator), r"foreign operator com\.microsoft\.EPContext"),
        (_telling(_other_outputs), "not those of its metadata"),
        (_telling(_double_state), "not those of its metadata"),
    ],
)
def test_changed_files_are_refused(
    streaming: export.Exported, tmp_path: Path, change: Callable[[onnx.ModelProto, Path], None], sentence: str
) -> None:
    proto = proto_of(streaming)
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(1 << 16))
    change(proto, secret)
    path = tmp_path / "changed.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match=sentence) as caught:
        onnx_backend.OnnxGenerator(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(ModelError, match=sentence):
        onnx_backend.OnnxGenerator(path.read_bytes())


@pytest.mark.parametrize("data", [b"", b"RIFF....WAVE", b"\x80\x05pickle", b"<html></html>", bytes(100)])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "other.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match="not an ONNX file"):
        onnx_backend.OnnxGenerator(path)


def test_damaged_missing_and_large_files(centred: export.Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "half.onnx"
    data = centred.path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="damaged"):
        onnx_backend.OnnxGenerator(path)
    with pytest.raises(ModelError, match="no such file"):
        onnx_backend.OnnxGenerator(tmp_path / "missing.onnx")
    with pytest.raises(ModelError, match="cannot be read"):
        onnx_backend.OnnxGenerator(tmp_path)
    monkeypatch.setattr(onnx_backend, "MAX_BYTES", 1000)
    with pytest.raises(ModelError, match="above the cap"):
        onnx_backend.OnnxGenerator(centred.path)


def test_targets_that_cannot_be(centred: export.Exported, tmp_path: Path) -> None:
    before = centred.path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        export.export(seanet(False), centred.path)
    assert centred.path.read_bytes() == before
    with pytest.raises(OutputError, match="is a folder"):
        export.export(seanet(False), tmp_path)
    with pytest.raises(OutputError, match="does not exist"):
        export.export(seanet(False), tmp_path / "none" / "model.onnx")
    with pytest.raises(ModelError, match="unknown model"):
        export.export("no-such-model", tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    return lambda name: monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
def test_the_extra_is_named(centred: export.Exported, without: Callable[[str], None], name: str) -> None:
    without(name)
    with pytest.raises(ImportError, match=r"bwe\[onnx\]"):
        onnx_backend.OnnxGenerator(centred.path)


@pytest.mark.slow
def test_a_causal_model_as_a_whole() -> None:
    net, runner = seanet(True), export.onnx_generator(seanet(True), threads=2)
    assert (runner.causal, runner.streaming, runner.threads) == (True, False, 2)
    for frames in (1, HOP, 7777):
        x, cutoff_hz = signal(frames, 2), np.array([3000.0, 9000.0])
        assert np.abs(runner(x, cutoff_hz) - module_output(net, x, cutoff_hz)).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"conditioning": 0}, {"passthrough": False}, {"excitation": False}, {"sample_rate": 16_000, "bands": 8}]
)
@pytest.mark.parametrize("causal", [False, True])
def test_every_kind_of_generator(changes: dict[str, object], causal: bool) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = generators.SEANet(dataclasses.replace(generators.SIZES["tiny"], causal=causal, **changes)).eval()
    runner = export.onnx_generator(net, streaming=causal)
    x, cutoff_hz = signal(5000), np.array([2500.0])
    assert np.abs(runner(x, cutoff_hz) - module_output(net, x, cutoff_hz)).max() < 1e-5
