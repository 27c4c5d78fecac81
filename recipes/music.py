"""Music to 44.1 kHz: size S of the SEANet generator, any cut-off from 2 to 16 kHz, inputs filtered, resampled or MP3-coded.

    bwe train recipes/music.py data=FOLDER

Two of three crops are mixes of two to four recordings, since a folder of single instruments is no music. Starts from
`speech-48k`, whose trunk is the same; `init=` starts from nothing. Released music ends between 18 and 20 kHz, and is taught to
end there, mixes included; what ends lower has been through a codec, and teaches nothing above.
"""

from bwe import data, degrade, discriminators, generators, train


def recipe() -> train.Recipe:
    return train.Recipe(
        name="music-44k",
        data="data/music",
        crops=data.CropConfig(seconds=0.5, speed=(1.0, 1.12), mix_share=0.3, mix_of=(2, 4), mix_top_hz=(18_000.0, 20_200.0)),
        degrade=degrade.Config(
            cutoff_hz=(2_000.0, 16_000.0),
            gain_db=(-9.0, 3.0),
            # Music is mixed to a colour of its own, and to a floor of its own: most of it stays as it is.
            clean_share=0.8,
            tilt_db=(-12.0, 6.0),
            eq_db=2.0,
            noise_dbfs=(-95.0, -65.0),
            noise_share=0.2,
            rumble_share=0.2,
            codec_share=0.12,
            codecs=("mp3",),
            shelf_share=0.08,
        ),
        generator=generators.Config(sample_rate=44_100, bands=22),
        discriminators=discriminators.Config(bands=22, subset=4),
        optim=train.OptimConfig(lr=4e-4, discriminator_lr=5e-4),
        batch=8,
        whole_from=0.4,
        steps=2_400,
        reconstruction_steps=2_000,
        init="speech-48k",
        precision="auto",
        threads=1,
        valid_cutoffs=(4_000.0, 8_000.0),
    )
