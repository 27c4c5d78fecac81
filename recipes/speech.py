"""Speech to 48 kHz: size S of the SEANet generator, any cut-off from 2 to 16 kHz.

    bwe train recipes/speech.py data=FOLDER

Reconstruction losses first, then four of the fourteen discriminators a step join. The values fit one thread of a small CPU,
where the first half takes 30 minutes and the second an hour. On a GPU: `batch=32 crops.seconds=1.0 steps=200000
reconstruction_steps=20000 discriminators.subset=0 discriminators.period_width=32 discriminators.stft_width=32`.
"""

from bwe import data, degrade, discriminators, generators, train


def recipe() -> train.Recipe:
    return train.Recipe(
        name="speech-48k",
        data="data/speech",
        crops=data.CropConfig(seconds=0.4),
        degrade=degrade.Config(cutoff_hz=(2_000.0, 16_000.0)),
        generator=generators.SIZES["S"],
        discriminators=discriminators.Config(subset=4),
        optim=train.OptimConfig(lr=5e-4, discriminator_lr=1e-3),
        batch=6,
        steps=14_000,
        reconstruction_steps=7_000,
        precision="auto",
        threads=1,
    )
