"""Body-conducted speech (throat, in-ear, forehead microphones) to 16 kHz: size S of the SEANet generator, which owns the band.

    python recipes/bone.py DATA PAIRS                                                # once: aligns and packs the pairs of DATA
    bwe train recipes/bone.py data=FOLDER pairs=PAIRS                                # learns from simulated bodies
    bwe train recipes/bone.py data=FOLDER pairs=PAIRS init=runs/bone-16k/best --run runs/bone-16k-tuned \
        crops.pair_share=0.5 steps=1500 reconstruction_steps=500 optim.lr=2e-4       # then from real pairs as well

Clean speech goes through random bodies: the mean response of throat microphones or a low-pass like an ear canal's, both with a
smooth random curve, a gain and a phase that wander, unvoiced sounds that get lost, contact, noise of the body. Real pairs have
a coherence of 0.35 to 0.5 below 700 Hz and under 0.15 above; so have these. Without simulation, minutes of pairs are learned
by heart; without pairs, the network learns the simulation (recipes/README.md has both).
"""

import argparse
import sys
from pathlib import Path

from bwe import corpora, data, degrade, discriminators, generators, paired, train
from bwe.errors import BweError

RATE = 16_000
# Body over air power, mean of the training pairs (`degrade.estimate_response(...).ratio()`), Hz and dB.
THROAT = (
    (60.0, 5.0), (100.0, 7.4), (160.0, 7.0), (200.0, 4.9), (250.0, 2.3), (310.0, 3.8), (400.0, 0.8), (500.0, -0.7),
    (630.0, -6.5), (800.0, -8.5), (1000.0, -10.2), (1270.0, -7.4), (1600.0, -11.1), (2000.0, -11.0), (2500.0, -8.8),
    (3200.0, -7.5), (4000.0, -15.0), (5000.0, -22.0), (6400.0, -27.1), (7600.0, -27.5),
)  # fmt: skip


def recipe() -> train.Recipe:
    return train.Recipe(
        name="bone-16k",
        data="data/speech-16k",
        crops=data.CropConfig(seconds=0.75, speed=(0.9, 1.15), pair_deviation_db=4.0, pair_noise_share=0.5, pause_share=0.3),
        degrade=degrade.Config(
            tilt_db=(-6.0, 10.0),
            eq_db=2.0,
            noise_share=0.0,
            rumble_share=0.0,
            input_noise_share=0.0,
            clean_share=0.3,
            bone_share=1.0,
            bone=degrade.Bone(
                cutoff_hz=1000.0,
                response=THROAT,
                lowpass_share=0.3,
                deviation_db=4.0,
                # Real sensors hiss: 18 dB under the voice in the lows, audible in every pause.
                noise_dbfs=(-75.0, -42.0),
                noise_exponent=(0.0, 3.0),
                noise_share=0.9,
                wander_db=(1.0, 8.0),
                wander_rad=(0.2, 1.3),
                unvoiced_db=(0.0, 16.0),
                drive=(0.0, 0.06),
            ),
        ),
        generator=generators.Config(sample_rate=RATE, bands=8, passthrough=False, told_hz=1000.0),
        discriminators=discriminators.Config(bands=8, subset=4),
        optim=train.OptimConfig(lr=5e-4, discriminator_lr=5e-4),
        batch=8,
        steps=5_000,
        reconstruction_steps=5_000,
        init="speech-48k",
        precision="auto",
        threads=1,
        valid_cutoffs=(1_000.0,),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA", help="a layout that bwe.corpora.pairs knows")
    parser.add_argument("out", type=Path, metavar="PAIRS")
    parser.add_argument("--class", dest="cls", help="only this class of DATA's manifest.csv")
    parser.add_argument("--all", action="store_true", help="pairs held out for validation teach as well")
    options = parser.parse_args()
    try:
        found = corpora.pairs(options.folder, options.cls)
        paired.prepare(found, options.out, RATE, say=lambda line: print(line, file=sys.stderr), hold_out=not options.all)
    except BweError as error:
        sys.exit(f"{parser.prog}: error: {error}")


if __name__ == "__main__":
    main()
