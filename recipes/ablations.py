"""What each part of a recipe is worth: arms that change one thing, trained for equal time, measured alike.

    python recipes/ablations.py FOLDER [ARM ...] [--minutes 5] [--run runs/ablations]

`FOLDER` is what `bwe prepare` wrote. Time is processor time of the training process on one thread, so that a busy machine
treats all arms alike. Of the speech recipe at 48 kHz, arms named rec-… learn from reconstruction losses alone and arms named
gan-… go on from `rec` against discriminators. Arms named field-… ask at 16 kHz what the field asks, from random weights (a
folder packed with `bwe prepare --rate 16000`), and also tell how far they were on the way. Those named music-… ask what it is
worth to start from a shipped model of speech, whether F0 stability should weigh the losses, and what the trend is worth and
noise that is heard (a folder of music packed at 44.1 kHz). A finished arm is not trained again. Prints one row a finished arm,
the figures of the two cut-offs side by side.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from bwe import data, degrade, runs, train

RECIPE, MUSIC_RECIPE = (Path(__file__).parent / name for name in ("speech.py", "music.py"))
# The recipe's plain data side: filters and resamplers, no speed perturbation, tilt but no random curve.
PLAIN = [
    "crops.speed=[1,1]",
    "degrade.eq_db=0",
    *(f"degrade.{d}_share=0" for d in ("codec", "shelf", "clip", "quantise", "dropout")),
]
ENDLESS = ["steps=1000000", "optim.final=1.0", "optim.warmup=50", "valid_every=1000000", "log_every=50"]
NO_DISCRIMINATORS = [f"discriminators.{kind}" for kind in ("periods=[]", "scales=0", "fft_sizes=[]", "bands=0")]
REC = [*NO_DISCRIMINATORS, "batch=8", "crops.seconds=0.5", "optim.lr=1e-3"]
GAN = ["reconstruction_steps=0", "batch=6", "crops.seconds=0.4", "optim.lr=2e-4", "discriminators.subset=4"]
# From the first step against discriminators, so that all arms differ in what they are asked about alone.
FIELD = [
    "generator.sample_rate=16000",
    "generator.bands=8",
    "discriminators.bands=8",
    "degrade.cutoff_hz=[1500,6000]",
    "valid_cutoffs=[2000,4000]",
    "reconstruction_steps=0",
    "batch=8",
    "crops.seconds=0.5",
    "optim.lr=5e-4",
    "optim.discriminator_lr=5e-4",
    "discriminators.subset=4",
    "precision=auto",
    "valid_every=200",
]
MUSIC = [*NO_DISCRIMINATORS, "valid_every=200", "optim.lr=5e-4"]
NO_RECONSTRUCTION = [f"losses.{name}=0" for name in ("stft", "log_mel", "band_energy")]
ARMS: dict[str, list[str]] = {
    "rec": REC,
    "rec-no-noise": [*REC, "degrade.noise_share=0", "degrade.rumble_share=0", "degrade.input_noise_share=0"],
    "rec-no-excitation": [*REC, "generator.excitation=false"],
    "rec-no-cutoff": [*REC, "generator.conditioning=0"],
    "rec-one-filter": [*REC, "degrade.iir_share=0", 'degrade.resamplers=["fft"]'],
    "rec-no-passthrough": [*REC, "generator.passthrough=false"],
    "gan": GAN,
    "gan-waveform": [*GAN, "discriminators.fft_sizes=[]", "discriminators.bands=0"],
    "gan-spectrum": [*GAN, "discriminators.periods=[]", "discriminators.scales=0"],
    "gan-ratio": [*GAN, "losses.balancer.mode=ratio"],
    "gan-fixed": [*GAN, "losses.balancer.mode=fixed", 'losses.balancer.shares={"rec":1,"feat":2,"adv":1}'],
    "gan-none": [*GAN, *NO_DISCRIMINATORS],
    "music": MUSIC,
    "music-scratch": [*MUSIC, "init="],
    "music-source": [*MUSIC, "crops.stability=true", "losses.stft=0", "losses.log_mel=0", "losses.source=1"],
    "music-no-trend": [*MUSIC, "generator.trend=false"],
    "music-any-noise": [*MUSIC, "degrade.noise_heard=false"],
    "field": FIELD,
    "field-ls": [*FIELD, "losses.adversarial=ls"],
    "field-fm": [*FIELD, *NO_RECONSTRUCTION],
    "field-mrstft": [*FIELD, 'losses.balancer.shares={"rec":0.7,"feat":0,"adv":0.3}'],
    "field-fixed": [*FIELD, "losses.balancer.mode=fixed", 'losses.balancer.shares={"rec":1,"feat":2,"adv":1}'],
    "field-three": [*FIELD, "discriminator_every=3"],
    "field-plain": [*FIELD, "generator.dilations=[1,1,1]", "generator.encoder_dilations=[1,1]"],
    "field-frequency": [*FIELD, *NO_DISCRIMINATORS],
    "field-time": [*FIELD, *NO_DISCRIMINATORS, *NO_RECONSTRUCTION, "losses.waveform_mse=1"],
}


def recipe_of(name: str, overrides: list[str]) -> train.Recipe:
    """The recipe of an arm."""
    music = name.startswith("music")
    common = ENDLESS if music else [*PLAIN, *ENDLESS, "precision=fp32"]
    recipe = train.load_recipe(MUSIC_RECIPE if music else RECIPE, [*overrides, *common, *ARMS[name]])
    return dataclasses.replace(recipe, name=name)


def train_arm(name: str, folder: Path, out: Path, minutes: float, seed: int) -> None:
    overrides = [f"data={folder}", f"minutes={minutes}", f"seed={seed}", f"crops.seed={seed}"]
    if name.startswith("gan"):
        overrides.append(f"init={out / 'rec' / 'last'}")
    recipe = recipe_of(name, overrides)
    torch.set_num_threads(1)
    train.keep_memory()
    crops = data.Crops(folder / "train", recipe.crops, degrade.Degradation(recipe.degrade))
    task = train.GANTask(recipe, data.whole(folder / "valid", recipe.valid_clips))
    trainer = train.Trainer(task, recipe, out / name, lambda line: print(line, file=sys.stderr), clock=time.process_time)
    trainer.fit(lambda start: data.batches(crops, recipe.batch, recipe.steps, start, recipe.workers))
    (out / name / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe), indent=1))


def row(name: str, out: Path) -> str:
    lines = list(runs.lines(out / name))
    found = {key: value for line in lines for key, value in line.items()}
    cutoffs = sorted({int(key.split("/")[1]) for key in found if key.startswith("val/") and key.count("/") == 2})
    pairs = [
        " / ".join(f"{found[f'val/{cutoff}/{key}']:.{digits}f}" for cutoff in cutoffs)
        for key, digits in (("lsd", 3), ("lsd_hf", 3), ("hf_bias", 1), ("lsd_lf", 3))
    ]
    halfway = [line for line in lines if f"val/{cutoffs[0]}/lsd" in line and line["step"] <= lines[-1]["step"] / 2]
    early = " / ".join(f"{halfway[-1][f'val/{cutoff}/lsd']:.3f}" for cutoff in cutoffs) if halfway else "–"
    return f"| {name} | {lines[-1]['step']} | {early} | " + " | ".join(pairs) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arms", nargs="*", default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    print("| arm | steps | LSD halfway | LSD | LSD-HF | HF bias dB | LSD-LF |\n|---|---|---|---|---|---|---|", flush=True)
    for name in options.arms:
        if not (options.run / name / "recipe.json").is_file():
            train_arm(name, options.folder, options.run, options.minutes, options.seed)
        print(row(name, options.run), flush=True)


if __name__ == "__main__":
    main()
