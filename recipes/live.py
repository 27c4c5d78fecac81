"""Speech to 48 kHz, live: a causal generator of size "live", reconstruction losses alone; the shipped `speech-48k-stream`.

    bwe train recipes/live.py data=FOLDER

All else is as in `speech.py`, but for longer crops: a causal network that starts in silence needs 0.2 s until it has its whole
past.
"""

from dataclasses import replace
from pathlib import Path

from bwe import discriminators, generators, train


def recipe() -> train.Recipe:
    speech = train.load_recipe(Path(__file__).with_name("speech.py"), [])
    return replace(
        speech,
        name="speech-48k-stream",
        crops=replace(speech.crops, seconds=0.7),
        generator=generators.SIZES["live"],
        discriminators=discriminators.Config(subset=0),
        optim=replace(speech.optim, lr=1e-3),
        batch=6,
        steps=8_000,
        reconstruction_steps=8_000,
        valid_every=500,
        valid_clips=36,
    )
