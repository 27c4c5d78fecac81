"""Recordings to crops: listing, splits, packing, and crops that depend on their index alone."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bwe import corpora, data, degrade, dsp
from bwe.errors import AudioError, BweError, ConfigError, OutputError

SR = 48_000
# Crops come out as they are in the recording.
CLEAN = degrade.Config(clean_share=1.0, gain_db=(0.0, 0.0), iir_share=0.0, resamplers=("fft",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for speaker, (rate, seconds) in {"anna": (48_000, 3.0), "bert": (44_100, 1.0), "carl": (48_000, 0.2)}.items():
        (tmp_path / speaker).mkdir()
        for take in range(2):
            x = rng.standard_normal((round(rate * seconds), 2)) * 0.1
            soundfile.write(tmp_path / speaker / f"{take}.flac", x, rate)
    return tmp_path


def crops(folder: Path, **config: object) -> data.Crops:
    return data.Crops(folder, data.CropConfig(seconds=0.25, **config), degrade.Degradation())  # type: ignore[arg-type]


def test_folders_without_an_index_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no index\.json"):
        crops(tmp_path)


def test_shards_hold_the_recordings_and_need_only_numpy(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    data.pack(corpora.clips(folder), out, SR)
    index = json.loads((out / "index.json").read_text())
    assert [c["length"] for c in index["clips"]] == [144_000] * 2 + [48_000] * 2 + [9_600] * 2
    assert [c["top_hz"] for c in index["clips"]][::2] == [24_000, pytest.approx(20_727), 24_000]
    shard = np.load(out / "shard_000.npy")
    assert shard.dtype == np.int16
    assert [c["path"] for c in index["clips"]][:2] == [str(folder / "anna" / f"{take}.flac") for take in (0, 1)]
    original = soundfile.read(folder / "anna" / "1.flac")[0].mean(1)
    entry = index["clips"][1]
    assert np.abs(shard[entry["start"] :][: entry["length"]] / 32767 - original).max() < 2 / 32767


def test_a_crop_depends_on_its_index_alone(folder: Path, tmp_path: Path) -> None:
    data.pack(corpora.clips(folder), tmp_path / "packed", SR)
    one, two = crops(tmp_path / "packed"), crops(tmp_path / "packed")
    two[3]
    for key, value in one[12345].items():
        assert torch.equal(value, two[12345][key])
    assert one[12345]["input"].shape == (1, 12_000)
    assert not torch.equal(one[0]["target"], one[1]["target"])
    assert not torch.equal(one[0]["target"], crops(tmp_path / "packed", seed=9)[0]["target"])


@pytest.mark.parametrize("order", ["random", "stream"])
def test_batches_continue_where_they_stopped_whatever_the_workers(folder: Path, tmp_path: Path, order: str) -> None:
    data.pack(corpora.clips(folder), tmp_path / "packed", SR)
    source = crops(tmp_path / "packed", order=order, crops_per_block=3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    through = list(data.batches(source, batch=4, steps=5, workers=0))
    assert len(through) == 5
    resumed = list(data.batches(source, batch=4, steps=5, start=2, workers=2))
    parts = [list(data.batches(source, 4, 5, 2, workers, rank, 2)) for rank, workers in ((0, 1), (1, 0))]
    joined = [{name: torch.cat([a[name], b[name]]) for name in a} for a, b in zip(*parts, strict=True)]
    for others in (resumed, joined):
        for a, b in zip(through[2:], others, strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ConfigError, match="batch=5 cannot be divided among 2 processes"):
        data.batches(source, batch=5, steps=4, world=2)


@pytest.mark.parametrize(("power", "expected"), [(0.0, [1 / 3, 1 / 3, 1 / 3]), (1.0, [3 / 4.2, 1 / 4.2, 0.2 / 4.2])])
def test_speakers_are_balanced(folder: Path, tmp_path: Path, power: float, expected: list[float]) -> None:
    data.pack(corpora.clips(folder), tmp_path / "packed", SR)
    source = crops(tmp_path / "packed", speaker_power=power)
    assert source.probability.reshape(3, 2).sum(1) == pytest.approx(expected)


def write_broken(path: Path, kind: str) -> None:
    x = np.random.default_rng(1).standard_normal(SR).astype(np.float32) * 0.1
    if kind == "not a number":
        x[100] = np.nan
    if kind == "silent":
        x[:] = 0
    soundfile.write(path, x[: 0 if kind == "no samples" else None], SR, subtype="FLOAT")
    if kind == "cut":
        os.truncate(path, 50_000)
    if kind == "empty":
        os.truncate(path, 0)
    if kind == "text":
        path.write_text("<html>not found</html>")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("not a number", "NaN at 0.0021 s in channel 1; repair or export the file again"),
        ("silent", "digital silence throughout"),
        ("no samples", "no samples"),
        ("cut", "truncated or damaged WAV file (the file ends before its data does)"),
        ("empty", "empty file (0 bytes)"),
        ("text", "not audio (starts with '<html>not found<')"),
    ],
)
def test_a_broken_recording_is_left_out_and_listed(folder: Path, tmp_path: Path, kind: str, reason: str) -> None:
    write_broken(folder / "anna" / "broken.wav", kind)
    found = corpora.clips(folder)
    quarantined = data.pack(found, tmp_path / "packed", SR, folder)
    assert [q["path"] for q in quarantined] == [os.path.join("anna", "broken.wav")]
    assert quarantined[0]["reason"].startswith(reason)
    assert json.loads((tmp_path / "packed" / "quarantine.json").read_text()) == quarantined
    index = json.loads((tmp_path / "packed" / "index.json").read_text())
    assert [c["path"] for c in index["clips"]] == [
        os.path.relpath(c.path, folder) for c in found if Path(c.path).name != "broken.wav"
    ]
    assert len(data.whole(tmp_path / "packed", 100)) == 6


def test_too_many_broken_recordings_stop_it_and_leave_no_index(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    data.pack(corpora.clips(folder), out, SR)
    for number in range(2):
        write_broken(folder / "carl" / f"broken_{number}.wav", "silent")
    said = r"^2 of 8 recordings \(25\.0%\) are broken: carl.broken_0\.wav: digital silence throughout; .*quarantine\.json"
    with pytest.raises(ConfigError, match=said):
        data.pack(corpora.clips(folder), out, SR, folder)
    with pytest.raises(ConfigError, match=r"no index\.json"):
        crops(out)
    # Of 201 recordings two are below 1 %.
    good = [c for c in corpora.clips(folder) if "carl/0" in c.path] * 199
    assert len(data.pack([*good, *corpora.clips(folder)[-2:]], out, SR, folder)) == 2
    (tmp_path / "alone").mkdir()
    write_broken(tmp_path / "alone" / "x.wav", "silent")
    with pytest.raises(ConfigError, match="1 of 1 recordings"):
        data.pack(corpora.clips(tmp_path / "alone"), out, SR)


def test_prepare_packs_splits_once_and_says_what_it_does(folder: Path, tmp_path: Path) -> None:
    rows = [
        "path,split",
        *(f"{name}/{take}.flac,{split}" for name, split in (("anna", "train"), ("bert", "valid")) for take in (0, 1)),
    ]
    (folder / "manifest.csv").write_text("\n".join(rows))
    (folder / "anna" / "1.flac").write_text("<html>")
    lines: list[str] = []
    data.prepare(folder, tmp_path / "out", 16_000, say=lines.append)
    assert lines[0] == "train: packing 2 recordings"
    assert lines[1].startswith("train: 1 broken recordings left out, see ")
    assert lines[2:] == ["valid: packing 2 recordings"]
    source = crops(tmp_path / "out" / "train")
    assert source.sample_rate == 16_000
    assert source.paths == ["anna/0.flac"]
    assert source.manifest_sha256 == hashlib.sha256((folder / "manifest.csv").read_bytes()).hexdigest()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    shutil.rmtree(folder / "anna")  # what is packed needs its source no more
    lines.clear()
    data.prepare(folder, tmp_path / "out", 16_000, say=lines.append)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before
    assert [line.split(" in ")[0] for line in lines] == ["train: 1 recordings", "valid: 2 recordings"]
    with pytest.raises(ConfigError, match="packed at 16000 Hz, not 48000 Hz"):
        data.prepare(folder, tmp_path / "out", SR)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file.*cannot be written"):
        data.prepare(folder, tmp_path / "file", SR)


def test_a_damaged_set_is_noticed(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "packed"
    data.pack(corpora.clips(folder), out, SR)
    data.verify(out)
    shard = bytearray((out / "shard_000.npy").read_bytes())
    shard[70_000] ^= 4
    (out / "shard_000.npy").write_bytes(shard)
    crops(out)
    with pytest.raises(ConfigError, match=r"shard_000\.npy: damaged, its checksum"):
        data.verify(out)
    (out / "shard_000.npy").write_bytes(shard[:-2])
    with pytest.raises(ConfigError, match=r"shard_000\.npy: \d+ bytes, where the index says"):
        crops(out)
    (out / "shard_000.npy").unlink()
    with pytest.raises(ConfigError, match=r"shard_000\.npy: 0 bytes"):
        data.whole(out, 1)
    (out / "index.json").write_text('{"format": 1, "clips": []}')
    with pytest.raises(ConfigError, match="not of this version"):
        crops(out)
    (out / "index.json").write_text("{")
    with pytest.raises(ConfigError, match=r"index\.json: damaged"):
        crops(out)


@pytest.mark.parametrize("order", ["random", "stream"])
def test_what_cannot_be_read_is_replaced_counted_and_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    monkeypatch.setattr(data, "_SHARD_SAMPLES", 20_000)  # a shard for (nearly) every recording
    out = tmp_path / "packed"
    data.pack(corpora.clips(folder), out, SR, folder)
    source = crops(out, order=order, crops_per_block=1)
    before = [source[i] for i in range(40)]
    assert {float(item["bad"]) for item in before} == {0.0}
    os.truncate(out / "shard_001.npy", 1000)
    after = [crop for part in data.batches(source, 1, 12, workers=1) for crop in [{k: v[0] for k, v in part.items()}]]
    bad = [bool(item["bad"]) for item in after]
    assert 0 < sum(bad) <= 10
    for is_bad, a, b in zip(bad, before, after, strict=False):
        assert torch.equal(a["target"], b["target"]) is not is_bad
    with pytest.raises(
        BweError, match=r"11 of the last 1000 crops could not be read: anna.1\.flac \(shard_001\.npy ends \d+"
    ) as info:
        list(data.batches(source, 4, 100, workers=1))
    assert str(info.value).endswith("check the disk and the data (bwe prepare), then continue with --resume")
    for shard in out.glob("*.npy"):
        os.truncate(shard, 128)
    with pytest.raises(
        AudioError, match=r"packed: 10 recordings in a row cannot be read, the last .*; check the disk$"
    ) as info:
        list(data.batches(source, 2, 2, workers=1))
    assert "\n" not in str(info.value)


def test_speed_changes_pitch_and_keeps_the_edges_clean(tmp_path: Path) -> None:
    t = np.arange(2 * SR) / SR
    (tmp_path / "a").mkdir()
    soundfile.write(tmp_path / "a" / "x.flac", 0.3 * np.sin(2 * np.pi * 3000 * t), SR)
    data.pack([corpora.Clip(path=str(tmp_path / "a" / "x.flac"), speaker="a", cutoff_hz=8000.0)], tmp_path / "packed", SR)

    def drawn(low: float, high: float, order: str, item: int = 5) -> tuple[np.ndarray, float]:
        config = data.CropConfig(seconds=0.25, speed=(low, high), order=order)  # type: ignore[arg-type]
        crop = data.Crops(tmp_path / "packed", config, degrade.Degradation(CLEAN))[item]
        return crop["target"][0].numpy().astype(np.float64), float(crop["top_hz"])

    for order in ("random", "stream"):
        for speed, top in ((1.0, 8000.0), (1.25, 10_000.0), (0.9, 7200.0)):
            x, top_hz = drawn(speed, speed, order)
            assert top_hz == pytest.approx(top)
            phase = 2 * np.pi * 3000 * speed * np.arange(12_000) / SR
            basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
            fit, *_ = np.linalg.lstsq(basis, x, rcond=None)
            assert np.hypot(*fit) == pytest.approx(0.3, rel=1e-3)
            assert np.abs(x - basis @ fit).max() < 1e-4
    tops = {round(drawn(1.0, 1.1, "random", item)[1]) for item in range(25)}
    assert tops <= {8000 + 80 * step for step in range(11)}
    assert len(tops) > 6
    data.pack([corpora.Clip(path=str(tmp_path / "a" / "x.flac"), speaker="a")], tmp_path / "packed", SR)
    assert drawn(1.1, 1.1, "random")[1] == pytest.approx(0.47 * SR)
    assert drawn(0.9, 0.9, "random")[1] == pytest.approx(0.9 * 0.47 * SR)


def test_settings_that_make_no_sense_are_named() -> None:
    for settings, said in (
        ({"speed": (1.1, 1.0)}, "two factors from 0.5 to 2"),
        ({"order": "stream", "speaker_power": 0.5}, "set speaker_power=1 instead of 0.5"),
        ({"crops_per_block": 0}, "crops_per_block=0"),
    ):
        with pytest.raises(ConfigError, match=said):
            data.CropConfig(**settings)  # type: ignore[arg-type]


def test_streamed_crops_lie_within_one_recording_and_reach_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_BLOCK_SAMPLES", 4000)
    lengths = [300, 2000, 5000, 9000, 15_000, 15_001]
    (tmp_path / "a").mkdir()
    for number, length in enumerate(lengths):  # samples count up
        soundfile.write(tmp_path / "a" / f"{number}.wav", np.arange(1, length + 1, dtype=np.int16), SR)
    data.pack(corpora.clips(tmp_path), tmp_path / "packed", SR)
    config = data.CropConfig(seconds=0.02, order="stream", crops_per_block=40)
    source = data.Crops(tmp_path / "packed", config, degrade.Degradation(CLEAN))
    wanted, starts = 960, []
    for item in range(12 * 40):  # one epoch
        x = torch.round(source[item]["target"][0] * 32767).numpy().astype(int)
        sounding = x[: np.flatnonzero(x)[-1] + 1]
        assert np.array_equal(sounding, np.arange(x[0], x[0] + len(sounding)))
        assert len(sounding) == wanted or (x[0] == 1 and len(sounding) == 300)
        starts.append(x[0])
    # Starts are spread evenly over 15 000 samples of the long recordings, and reach both their ends.
    assert min(starts) < 30
    assert 13_900 < max(starts) <= 15_001 - wanted + 1
    late = np.array([start for start in starts if start > 9000])
    assert np.histogram(late, bins=5, range=(9000, 14_040))[0].min() > 0.1 * len(late)


STREAM = """
import resource, sys
import numpy as np, torch
from bwe import corpora, data, degrade, dsp

folder, blocks = sys.argv[1], int(sys.argv[2])
clean = degrade.Config(clean_share=1.0, gain_db=(0.0, 0.0), iir_share=0.0, resamplers=("fft",))
config = data.CropConfig(seconds=0.1, order="stream", crops_per_block=4)
crops = data.Crops(folder, config, degrade.Degradation(clean))
next(data.batches(crops, 4, 1, workers=1))  # threads and modules that come with the first use
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + 2**25, -1))
try:
    np.fromfile(folder + "/shard_000.npy", np.int16)
except MemoryError:
    pass
else:
    sys.exit("the set fits into the memory allowed")
lanes = [[], [], [], []]
for rank in range(2):
    for batch in data.batches(crops, 4, blocks, workers=2, rank=rank, world=2):
        for place, target in enumerate(batch["target"]):
            block = round(float(target[0, 0]) * 32767 / 500) - 1
            blocks_of_lane = lanes[2 * rank + place]
            if blocks_of_lane[-1:] != [block]:
                blocks_of_lane.append(block)
seen = [block for lane in lanes for block in lane[: blocks // 4]]
assert sorted(seen) == list(range(blocks)), seen
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory the way of Linux")
def test_a_set_larger_than_memory_streams_every_block_once(tmp_path: Path) -> None:
    block, blocks = data._BLOCK_SAMPLES, 32
    (tmp_path / "a").mkdir()
    for clip in range(4):  # the level tells the block
        levels = np.repeat(np.arange(blocks // 4) + clip * blocks // 4 + 1, block) * 500
        soundfile.write(tmp_path / "a" / f"{clip}.wav", levels.astype(np.int16), SR)
    data.pack(corpora.clips(tmp_path), tmp_path / "packed", SR)
    assert (tmp_path / "packed" / "shard_000.npy").stat().st_size > 2**27
    command = [sys.executable, "-c", STREAM, str(tmp_path / "packed"), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_dead_workers_are_named_with_what_they_were_at(folder: Path, tmp_path: Path) -> None:
    data.pack(corpora.clips(folder), tmp_path / "packed", SR, folder)
    before = signal.getsignal(signal.SIGCHLD)
    source = data.batches(crops(tmp_path / "packed"), 2, 10_000, workers=2)
    for _ in range(2):  # they take turns: now both are past their start
        next(source)
    assert signal.getsignal(signal.SIGCHLD) == before
    workers = sorted(multiprocessing.active_children(), key=lambda process: process.pid or 0)
    pids = [worker.pid or 0 for worker in workers]
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGINT)  # Ctrl-C and a scheduler's SIGTERM reach all: the workers leave them to the parent
        os.kill(pid, signal.SIGTERM)
    for _ in range(20):
        next(source)
    for worker, number in zip(workers, (signal.SIGKILL, signal.SIGUSR1), strict=True):
        os.kill(worker.pid or 0, number)
        worker.join(20)
    at = r"at (anna|bert|carl).[01]\.flac"
    first = rf"packed: data worker 0 \(pid {pids[0]}\) was killed by SIGKILL \(out of memory\? try fewer workers\) {at}, "
    second = rf"data worker 1 \(pid {pids[1]}\) was killed by SIGUSR1 {at}; continue with --resume$"
    with pytest.raises(BweError, match=first + second):
        list(source)


def test_mixes_hold_several_recordings_and_end_where_releases_do(tmp_path: Path) -> None:
    t = np.arange(SR) / SR
    for number, hz in enumerate((1000, 3000, 21_000)):
        (tmp_path / str(number)).mkdir()
        soundfile.write(tmp_path / str(number) / "x.flac", 0.2 * np.sin(2 * np.pi * hz * t), SR)
    data.pack(corpora.clips(tmp_path), tmp_path / "packed", SR)

    def spectra(**config: object) -> np.ndarray:
        source = data.Crops(
            tmp_path / "packed", data.CropConfig(seconds=0.25, **config), degrade.Degradation(CLEAN)  # type: ignore[arg-type]
        )  # fmt: skip
        targets = torch.stack([source[i]["target"][0] for i in range(12)])
        assert float(targets.abs().max()) <= 1
        return (torch.fft.rfft(targets).abs()[:, [250, 750, 5250]] / 6000).numpy()

    assert ((spectra() > 0.01).sum(1) == 1).all()
    mixed = (spectra(mix_share=1.0, mix_of=(3, 3)) > 0.01).sum(1)
    assert mixed.max() == 3
    assert mixed.mean() > 1.7
    released = spectra(mix_share=1.0, mix_of=(3, 3), mix_top_hz=(18_000, 20_000))
    assert released[:, :2].max() > 0.01
    assert released[:, 2].max() < 1e-4
    with pytest.raises(ConfigError, match=r"mix_share=2, .*a share from 0 to 1"):
        data.CropConfig(mix_share=2.0)


def test_pairs_keep_body_and_air_together_and_are_drawn_as_often_as_asked(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    out = tmp_path / "pairs"
    for side, factor in (("body", 1.0), ("air", -0.5)):
        for number in range(3):
            x = np.random.default_rng(number).standard_normal(SR // 2) * 0.1
            (tmp_path / side).mkdir(exist_ok=True)
            soundfile.write(tmp_path / side / f"{number}.wav", factor * x, SR, subtype="FLOAT")
        data.pack(corpora.clips(tmp_path / side), out / side, SR)
    pairs = data.Pairs(out)
    for _ in range(5):
        body, air = pairs.crop(rng, SR // 4)
        assert len(body) == SR // 4
        assert torch.allclose(air, -0.5 * body, atol=1e-4)
        assert float(body.abs().max()) > 0.1
    body, _ = pairs.crop(rng, SR)
    assert len(body) == SR
    assert not body[SR // 2 :].any()

    data.pack(corpora.clips(folder), tmp_path / "packed", SR)
    config = data.CropConfig(seconds=0.25, pair_share=0.5, pair_deviation_db=0.0)
    plain = degrade.Config(gain_db=(0.0, 0.0), bone=degrade.Bone(flip_share=0.0))
    source = data.Crops(tmp_path / "packed", config, degrade.Degradation(plain), pairs)
    real = [torch.allclose(item["target"], -0.5 * item["input"], atol=1e-3) for item in map(source.__getitem__, range(60))]
    assert 18 <= sum(real) <= 42
    with pytest.raises(ConfigError, match=r"pair_share=0.5, but there are no pairs; give pairs=FOLDER"):
        data.Crops(tmp_path / "packed", config, degrade.Degradation(plain))
    shutil.copytree(tmp_path / "packed", out / "air", dirs_exist_ok=True)
    with pytest.raises(ConfigError, match="body and air are not packed alike"):
        data.Pairs(out)


def test_air_microphones_hear_the_target_in_noise_of_the_asked_ratio(folder: Path, tmp_path: Path) -> None:
    data.pack(corpora.clips(folder), tmp_path / "packed", SR)
    for share in (0.0, 1.0):
        air = degrade.Air(microphones=2, snr_db=(5.0, 5.0), babble_share=share, mismatch_db=0.0)
        plain = degrade.Config(gain_db=(0.0, 0.0), clean_share=1.0, air=air)
        source = data.Crops(tmp_path / "packed", data.CropConfig(seconds=0.25), degrade.Degradation(plain))
        for index in range(6):
            item = source[index]
            assert item["input"].shape == (3, SR // 4)
            noise = item["input"][1:] - item["target"]
            ratio = 10 * torch.log10(item["target"].square().mean() / noise.square().mean(-1))
            assert torch.allclose(ratio, torch.tensor(5.0), atol=0.3), (share, index)
            # The same noise, late.
            lag, likeness = dsp.best_lag(noise[:1].numpy(), noise[1:].numpy(), 20)
            assert abs(likeness) > 0.7
            assert abs(lag) <= 12
