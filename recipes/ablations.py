"""What each part of the speech recipe is worth: arms that change one thing, trained for equal time, measured alike.

    python recipes/ablations.py FOLDER [--minutes 5] [--run runs/ablations] [ARM ...]

`FOLDER` is what `bwe prepare` wrote. Time is processor time of the training process on one thread, so that a busy machine
treats all arms alike. Arms named rec-… learn from reconstruction losses alone; arms named gan-… go on from `rec` against
discriminators. A finished arm is not trained again. Prints one row a finished arm.
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

RECIPE = Path(__file__).parent / "speech.py"
# The recipe's plain data side: filters and resamplers, no speed perturbation, tilt but no random curve.
PLAIN = [
    "crops.speed=[1,1]",
    "degrade.eq_db=0",
    *(f"degrade.{d}_share=0" for d in ("codec", "shelf", "clip", "quantise", "dropout")),
]
COMMON = [
    *PLAIN,
    "steps=1000000",
    "optim.final=1.0",
    "optim.warmup=50",
    "precision=fp32",
    "valid_every=1000000",
    "log_every=50",
]
NO_DISCRIMINATORS = [f"discriminators.{kind}" for kind in ("periods=[]", "scales=0", "fft_sizes=[]", "bands=0")]
REC = [*NO_DISCRIMINATORS, "batch=8", "crops.seconds=0.5", "optim.lr=1e-3"]
GAN = ["reconstruction_steps=0", "batch=6", "crops.seconds=0.4", "optim.lr=2e-4", "discriminators.subset=4"]
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
}


def train_arm(name: str, folder: Path, out: Path, minutes: float, seed: int) -> None:
    overrides = [f"data={folder}", f"minutes={minutes}", f"seed={seed}", f"crops.seed={seed}", *COMMON, *ARMS[name]]
    if name.startswith("gan"):
        overrides.append(f"init={out / 'rec' / 'last'}")
    recipe = dataclasses.replace(train.load_recipe(RECIPE, overrides), name=name)
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
    pairs = [
        " / ".join(f"{found[f'val/{cutoff}/{key}']:.{digits}f}" for cutoff in (4000, 8000))
        for key, digits in (("lsd", 3), ("lsd_hf", 3), ("hf_bias", 1), ("lsd_lf", 3))
    ]
    return f"| {name} | {lines[-1]['step']} | " + " | ".join(pairs) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("arms", nargs="*", default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    print("| arm | steps | LSD 4 k / 8 k | LSD-HF | HF bias dB | LSD-LF |\n|---|---|---|---|---|---|", flush=True)
    for name in options.arms:
        if not (options.run / name / "recipe.json").is_file():
            train_arm(name, options.folder, options.run, options.minutes, options.seed)
        print(row(name, options.run), flush=True)


if __name__ == "__main__":
    main()
