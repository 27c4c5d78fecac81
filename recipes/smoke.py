"""A whole training on generated signals in under a minute on two CPU cores: warm-up, discriminators, validation, export.

    bwe train recipes/smoke.py

It shows that everything works together, nothing of quality.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from bwe import data, degrade, discriminators, generators, train

SAMPLE_RATE = 48_000


def voice(rng: np.random.Generator, seconds: float) -> np.ndarray:
    """A crude talker, `(T,)`: gliding harmonics that fall by 9 dB an octave, with bursts of noise between them."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = rng.uniform(90, 250) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE
    number = np.arange(1, int(22_000 / pitch.max()))
    voiced = sum(np.sin(n * phase + rng.uniform(0, 6)) * n**-1.5 for n in number)
    gate = np.sin(2 * np.pi * rng.uniform(1, 3) * t) > 0
    noise = np.diff(rng.standard_normal(len(t) + 1)) * 0.2
    x = np.where(gate, voiced, noise) + 1e-4 * rng.standard_normal(len(t))
    return 0.3 * x / np.abs(x).max()


def recordings() -> Path:
    """The folder with the generated recordings, made once: twenty speakers of one clip of 1.5 s."""
    folder = Path(tempfile.gettempdir()) / "bwe-smoke-signals"
    for speaker in range(20):
        path = folder / f"speaker_{speaker:02d}" / "clip.wav"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{os.getpid()}.wav.tmp")  # another process may be at it, too
            x = voice(np.random.default_rng(speaker), 1.5)
            soundfile.write(temporary, x, SAMPLE_RATE, subtype="PCM_16", format="WAV")
            temporary.replace(path)
    return folder


def recipe() -> train.Recipe:
    return train.Recipe(
        name="smoke",
        data=str(recordings()),
        crops=data.CropConfig(seconds=0.25),
        degrade=degrade.Config(cutoff_hz=(3_000.0, 10_000.0)),
        generator=generators.SIZES["tiny"],
        discriminators=discriminators.Config(
            periods=(2, 3), scales=1, fft_sizes=(512,), band_dilations=(1,), period_width=4, scale_width=4, stft_width=4,
            band_width=8, subset=2,
        ),
        optim=train.OptimConfig(lr=2e-3, warmup=10),
        batch=4,
        steps=80,
        reconstruction_steps=60,
        log_every=20,
        valid_every=80,
        valid_clips=2,
        checkpoint_every=40,
        workers=0,
    )  # fmt: skip
