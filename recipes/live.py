"""Speech to 48 kHz, live: a causal generator of size "live", reconstruction losses alone; the shipped `speech-48k-stream`.

    bwe train recipes/live.py data=FOLDER

Longer crops than `speech.py`: a causal network that starts in silence needs 0.3 s until it has its whole past.
"""

from bwe import data, degrade, discriminators, generators, train


def recipe() -> train.Recipe:
    return train.Recipe(
        name="speech-48k-stream",
        data="data/speech",
        crops=data.CropConfig(seconds=0.7, speed=(1.0, 1.15)),
        degrade=degrade.Config(
            cutoff_hz=(2_000.0, 16_000.0),
            eq_db=3.0,
            codec_share=0.08,
            shelf_share=0.06,
            clip_share=0.03,
            quantise_share=0.05,
            dropout_share=0.02,
        ),
        generator=generators.SIZES["live"],
        discriminators=discriminators.Config(subset=0),
        optim=train.OptimConfig(lr=1e-3),
        batch=6,
        steps=8_000,
        reconstruction_steps=8_000,
        valid_every=500,
        valid_clips=36,
        precision="auto",
        threads=1,
    )
