"""Speech to 48 kHz: size S of the SEANet generator, any cut-off from 2 to 16 kHz.

    bwe train recipes/speech.py data=FOLDER

Reconstruction losses first, then the discriminators join. The values fit a small CPU machine; on a GPU raise `batch`,
`crops.seconds` and the discriminators' widths, and set `discriminators.subset=0`.
"""

from bwe import data, degrade, discriminators, generators, train


def recipe() -> train.Recipe:
    return train.Recipe(
        name="speech-48k",
        data="data/speech",
        crops=data.CropConfig(seconds=0.5),
        degrade=degrade.Config(cutoff_hz=(2_000.0, 16_000.0)),
        generator=generators.SIZES["S"],
        discriminators=discriminators.Config(),
        batch=8,
        steps=40_000,
        reconstruction_steps=12_000,
    )
