"""Pairs of a body and an air microphone: what sensors and recorders did to them is found and undone, or they are rejected."""

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from scipy import signal

from bwe import data, degrade, paired
from bwe.corpora import PairClip
from bwe.errors import AudioError, ConfigError

SR = 16_000


@pytest.fixture(scope="module")
def speech(talk: np.ndarray) -> np.ndarray:
    """Two seconds of speech `(T,)` at 16 kHz."""
    return signal.resample_poly(talk[0], 1, 3)[: 2 * SR].astype(np.float32)


@pytest.fixture(scope="module")
def body(speech: np.ndarray) -> np.ndarray:
    """The same, as a throat microphone hears it."""
    bone = degrade.Bone(
        response=((100.0, 6.0), (450.0, 0.0), (850.0, -9.0), (4800.0, -20.0)),
        wander_db=(4.0, 4.0),
        wander_rad=(0.6, 0.6),
        flip_share=0.0,
        noise_dbfs=(-60.0, -60.0),
    )
    way = degrade.Degradation(degrade.Config(bone_share=1.0, clean_share=1.0, gain_db=(0.0, 0.0), bone=bone))
    parameters = way.sample(np.random.default_rng(0), 1)
    return way.apply(torch.from_numpy(speech)[None, None], SR, parameters).input[0, 0].numpy()


@pytest.mark.parametrize(("delay_ms", "gain"), [(0.0, 1.0), (1.5, -0.3), (-2.0, 0.5), (120.0, -1.0), (-333.0, 0.1)])
def test_delay_polarity_and_level_are_found_and_undone(
    speech: np.ndarray, body: np.ndarray, delay_ms: float, gain: float
) -> None:
    lag = round(delay_ms * SR / 1000)
    late = np.concatenate([np.zeros(lag, np.float32), body]) if lag > 0 else body[-lag:]
    rng = np.random.default_rng(1)
    late = gain * late + 1e-4 * rng.standard_normal(len(late)).astype(np.float32)
    upright = paired.alignment(body, speech, SR)
    assert (upright.lag, upright.inverted) == (0, False)
    found = paired.alignment(late, speech, SR)
    assert (found.lag, found.inverted) == (lag, gain < 0)
    assert found.level_db - upright.level_db == pytest.approx(20 * np.log10(abs(gain)), abs=0.6)
    made, air, _ = paired.aligned(late, speech, SR)
    assert len(made) == len(air) >= len(speech) - abs(lag)
    again = paired.alignment(made, air, SR)
    assert (again.lag, again.inverted) == (0, False)
    assert again.level_db == pytest.approx(0, abs=0.1)


def test_real_throat_pairs_are_found_inverted(shared_data: Path) -> None:
    inverted, lags = 0, []
    for number in (5, 7, 8, 10, 11, 16, 17, 22):
        folder = shared_data / "bone" / "train"
        both = [soundfile.read(folder / f"vibravox-{number:02d}_{name}.flac")[0] for name in ("body_002", "air_001")]
        found = paired.alignment(*both, SR)
        inverted += found.inverted
        lags.append(abs(found.lag))
    assert inverted == 8
    assert max(lags) <= 8  # half a millisecond


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda b, a: (b * 0, a), "the body signal is silent"),
        (lambda b, a: (b, np.where(np.arange(len(a)) == 9, np.nan, a)), "the air signal has NaN or Inf"),
        (lambda b, a: (b, np.sign(a)), r"100\.0% of the air signal is at full scale"),
        (lambda b, a: (b[: SR // 4], a), r"0\.25 s, less than 0\.5 s"),
        (
            lambda b, a: (np.random.default_rng(0).standard_normal(len(b)) * 0.1, a),
            r"a correlation of 0\.0\d from 80 to 900 Hz",
        ),
        (lambda b, a: (b * 1e-4, a), "dB apart from 80 to 900 Hz, more than 50 dB"),
    ],
    ids=["silent", "nan", "clipped", "short", "unrelated", "off"],
)
def test_bad_pairs_are_rejected_with_the_reason(speech: np.ndarray, body: np.ndarray, damage: object, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        paired.aligned(*damage(body, speech), SR)  # type: ignore[operator]


def test_prepare_writes_aligned_files_shards_and_a_report(speech: np.ndarray, body: np.ndarray, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "air.wav", speech, SR)
    soundfile.write(tmp_path / "body.wav", -0.5 * np.roll(body, 20), SR)
    soundfile.write(tmp_path / "both.wav", np.stack([body, speech], axis=1), SR)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).standard_normal(SR) * 0.1, SR)

    def pair(body: str, air: str, split: str, **more: int) -> PairClip:
        paths = {"body": str(tmp_path / body), "air": str(tmp_path / air)}
        return PairClip(**paths, speaker="a", sensor="throat", split=split, **more)  # type: ignore[arg-type]

    pairs = [
        pair("body.wav", "air.wav", "train"),
        pair("noise.wav", "air.wav", "train"),
        pair("both.wav", "both.wav", "valid", air_channel=1),
        pair("body.wav", "air.wav", "test", air_channel=1),
        pair("gone.wav", "air.wav", "test"),
    ]
    told: list[str] = []
    out = tmp_path / "out"
    paired.prepare(pairs, out, SR, say=told.append)
    assert told == [f"5 pairs, 1 inverted, 3 rejected; see {out / 'pairs.csv'}"]
    rows = list(csv.DictReader((out / "pairs.csv").open()))
    assert [row["rejected"][:13] for row in rows] == [
        "",
        "a correlation",
        "",
        rows[3]["rejected"][:13],
        rows[4]["rejected"][:13],
    ]
    assert "has 1 channels, no channel 1" in rows[3]["rejected"]
    assert "gone.wav" in rows[4]["rejected"]
    assert (float(rows[0]["lag_ms"]), rows[0]["inverted"]) == (1.25, "1")
    for split in ("train", "valid"):
        made = data.Pairs(out / split)
        assert len(made.clips) == 1
        b, a = made.read(0)
        correlation = float((b * a).sum() / (b.norm() * a.norm()))
        assert correlation > 0.3
        heard = [soundfile.read(next((out / "aligned" / split / side).glob("*.flac")))[0] for side in ("body", "air")]
        assert np.allclose(heard, torch.stack([b, a]), atol=1e-4)
    with pytest.raises(ConfigError, match=r"no pair of the split 'train' is left; the first: .*noise\.wav: a correlation"):
        paired.prepare([pair("noise.wav", "air.wav", "train")], tmp_path / "none", SR)
