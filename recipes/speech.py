"""Speech to 48 kHz: size S of the SEANet generator, any cut-off from 2 to 16 kHz, inputs filtered, resampled or coded.

    bwe train recipes/speech.py data=FOLDER

Reconstruction losses first, then four of the fourteen discriminators a step join. The values fit a small CPU, where both
halves take one to two hours each. On a GPU: `batch=32 crops.seconds=1.0 steps=200000 reconstruction_steps=20000
discriminators.subset=0 discriminators.period_width=32 discriminators.stft_width=32`. AAC and AMR need the extra `formats`;
without it: `'degrade.codecs=["mp3","opus","vorbis","gsm","ulaw","alaw"]'`.
"""

from bwe import data, degrade, discriminators, generators, train


def recipe() -> train.Recipe:
    return train.Recipe(
        name="speech-48k",
        data="data/speech",
        crops=data.CropConfig(seconds=0.4, speed=(1.0, 1.15)),
        degrade=degrade.Config(
            cutoff_hz=(2_000.0, 16_000.0),
            eq_db=3.0,
            codec_share=0.08,
            shelf_share=0.06,
            clip_share=0.03,
            quantise_share=0.05,
            dropout_share=0.02,
        ),
        generator=generators.SIZES["S"],
        discriminators=discriminators.Config(subset=4),
        optim=train.OptimConfig(lr=5e-4, discriminator_lr=1e-3),
        batch=8,
        steps=14_000,
        reconstruction_steps=7_000,
        precision="auto",
        threads=1,
    )
