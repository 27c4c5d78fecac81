"""Music to 44.1 kHz: size S of the SEANet generator, any cut-off from 2 to 16 kHz, inputs filtered, resampled or MP3-coded.

    bwe train recipes/music.py data=FOLDER

Three of ten crops are mixes of two to four recordings, since a folder of single instruments is no music. Starts from
`speech-48k`, whose trunk is the same; `init=` starts from nothing. Released music ends between 18 and 20 kHz, and is taught to
end there, mixes included; what ends below 13 kHz teaches nothing above. What falls to silence goes on falling: the generator
is offered the trend, slopes are steep, noise is where the known band shows it and the cut-off is high enough to tell hiss from
music, and the floor is that of a 16-bit file.
"""

from bwe import data, degrade, discriminators, generators, train


def recipe() -> train.Recipe:
    return train.Recipe(
        name="music-44k",
        data="data/music",
        crops=data.CropConfig(
            seconds=0.5,
            speaker_power=0.6,
            speed=(1.0, 1.12),
            mix_share=0.3,
            mix_of=(2, 4),
            mix_top_hz=(18_000.0, 20_200.0),
        ),
        degrade=degrade.Config(
            cutoff_hz=(2_000.0, 16_000.0),
            gain_db=(-9.0, 3.0),
            # Steep and flat slopes, and floors of any colour: what the spectrum does below the cut-off goes on above it.
            clean_share=0.3,
            tilt_db=(-30.0, 10.0),
            slope_db=(-14.0, 2.0),
            noise_dbfs=(-95.0, -55.0),
            noise_exponent=(-0.5, 2.5),
            noise_share=0.2,
            noise_heard=True,
            noise_from_hz=6_000.0,
            file_bits=16,
            # Few soft filters, whose skirts look like a slope.
            iir_share=0.25,
            order=(4, 10),
            rumble_share=0.2,
            codec_share=0.12,
            codecs=("mp3",),
            shelf_share=0.08,
        ),
        generator=generators.Config(sample_rate=44_100, bands=22, trend=True),
        discriminators=discriminators.Config(bands=22, subset=4),
        # At a weight of 1 the fill came out half a dB quieter yet.
        losses=train.LossConfig(band_energy=3.0),
        optim=train.OptimConfig(lr=4e-4, discriminator_lr=5e-4),
        batch=8,
        whole_from=0.3,
        steps=2_200,
        reconstruction_steps=2_200,
        init="speech-48k",
        precision="auto",
        threads=1,
        valid_cutoffs=(4_000.0, 8_000.0),
    )
