"""Body and air microphones together: the generator of `bone.py` with noisy air microphones as further inputs.

    python recipes/fusion.py DATA [ARM ...] [--minutes 6] [--run runs/fusion]

`DATA` holds a `manifest.csv` with the class `speech48` (splits train, valid, test). Bodies are simulated as in `bone.py`; the
air microphone hears the same voice in babble of other speakers or in stationary noise. All arms have the same trunk, losses
and processor time (one thread), and start from `speech-48k`: "body" and "air" hear one signal; "fusion" hears both, with F0 of
the body signal and filter banks of both as conditioning, "fusion-plain" both without conditioning, "fusion-two" two air
microphones and their direction as well. The test voices are mixed at 0, 5 and 10 dB. A finished arm is not trained again.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import soundfile
import torch
from torch import Tensor

from bwe import audio, corpora, data, degrade, dsp, hub, train
from bwe.evaluate import compare

RATE = 16_000
BONE = Path(__file__).parent / "bone.py"
SNR_DB = (0, 5, 10)
ALONE = [f"discriminators.{kind}" for kind in ("periods=[]", "scales=0", "fft_sizes=[]", "bands=0")]
COMMON = [
    *ALONE,
    "losses.si_sdr=0.5",
    # Which of the two is upside down can be heard from both, but not from one.
    "degrade.bone.flip_share=0",
    "steps=1000000",
    "optim.final=1.0",
    "optim.warmup=50",
    "valid_every=1000000",
    "checkpoint_every=1000000",
    "log_every=50",
]
ARMS: dict[str, list[str]] = {
    "body": [],
    "air": [],
    "fusion": ["generator.air=1", 'generator.features=["f0","bank"]', "degrade.air.microphones=1"],
    "fusion-plain": ["generator.air=1", "degrade.air.microphones=1"],
    "fusion-two": ["generator.air=2", 'generator.features=["f0","bank","direction"]', "degrade.air.microphones=2"],
}
METRICS = ("si_sdr", "lsd", "stoi", "estoi", "pesq")


def inputs_of(name: str, heard: Tensor) -> Tensor:
    """What an arm hears of `(..., 1 + A, T)`: the body and all air microphones of a fusion, or one of them."""
    if name == "air":
        return heard[..., 1:2, :]
    return heard if name.startswith("fusion") else heard[..., :1, :]


def recipe_of(name: str, overrides: list[str]) -> train.Recipe:
    """The recipe of an arm."""
    return dataclasses.replace(train.load_recipe(BONE, [*overrides, *COMMON, *ARMS[name]]), name=name)


def train_arm(name: str, out: Path, minutes: float, seed: int) -> None:
    run, packed = out / name, out / "packed"
    card = f"# {name}\n\nArm of recipes/fusion.py, {minutes:g} minutes of processor time, seed {seed}."
    recipe = recipe_of(name, [f"data={packed}", f"minutes={minutes}", f"seed={seed}", f"crops.seed={seed}"])
    recipe = dataclasses.replace(recipe, card=card)
    torch.set_num_threads(1)
    train.keep_memory()
    air = dataclasses.replace(recipe.degrade.air, microphones=max(1, recipe.degrade.air.microphones))
    way = degrade.Degradation(dataclasses.replace(recipe.degrade, air=air))
    crops = data.Crops(packed / "train", recipe.crops, way)

    def batches(start: int) -> Iterator[dict[str, Tensor]]:
        for batch in data.batches(crops, recipe.batch, recipe.steps, start, recipe.workers):
            yield {**batch, "input": inputs_of(name, batch["input"])}

    # Of the arm "air" there is nothing to validate: its one input would be taken for a body's.
    task = train.GANTask(recipe, [] if name == "air" else data.whole(packed / "valid", 12))
    trainer = train.Trainer(task, recipe, run, lambda line: print(line, file=sys.stderr), clock=time.process_time)
    trainer.fit(batches)
    task.export(out / "models" / name, card)
    (run / "steps.json").write_text(json.dumps({"steps": trainer.step, "minutes": trainer.trained_s / 60}))


def scenes(folder: Path, count: int) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Test voices: name, clean speech, simulated body signal and noise, `(1, T)` each at 16 kHz."""
    found = corpora.clips(folder, "speech48", "test")
    chosen = [found[i] for i in np.linspace(0, len(found) - 1, count).astype(int)]
    voices = []
    for clip in chosen:
        x, info = audio.read(clip.path)
        voices.append(dsp.resample(torch.from_numpy(x).mean(0, keepdim=True), info.sample_rate, RATE))
    config = train.load_recipe(BONE, COMMON).degrade
    way = degrade.Degradation(dataclasses.replace(config, gain_db=(0.0, 0.0), clean_share=1.0))
    for number, (clip, voice) in enumerate(zip(chosen, voices, strict=True)):
        rng = np.random.default_rng([7, number])
        body = way.apply(voice[None], RATE, way.sample(rng, 1)).input[0]
        length = voice.shape[-1]
        if number % 2:
            noise = torch.from_numpy(degrade.coloured_noise(length, -20.0, float(rng.uniform(0, 1.5)), number))[None]
        else:
            others = [v for c, v in zip(chosen, voices, strict=True) if c.speaker != clip.speaker]
            noise = torch.zeros(1, length)
            for place in rng.choice(len(others), min(4, len(others)), replace=False):
                other = others[place].repeat(1, -(-length // others[place].shape[-1]))[:, :length]
                noise += other / other.square().mean().sqrt()
        yield f"{number:02d}_{Path(clip.path).stem}", voice, body, noise


def measure(folder: Path, out: Path, names: list[str], count: int) -> None:
    systems = {name: hub.read(out / "models" / name)[0] for name in names}
    shutil.rmtree(out / "test", ignore_errors=True)
    air = degrade.Air(microphones=2, mismatch_db=0.0)
    for name, voice, body, noise in scenes(folder, count):
        for snr_db in SNR_DB:
            heard = torch.cat(
                [body, degrade.heard_in_noise(voice, noise, RATE, air, snr_db, np.random.default_rng(len(name)))]
            )
            made = {"reference": voice, "body microphone": body, "air microphone": heard[1:2]}
            for arm, generator in systems.items():
                given = inputs_of(arm, heard)[: 1 + generator.config.air]
                with torch.inference_mode():
                    made[f"{arm} (model)"] = generator(given[None], torch.tensor([generator.config.told_hz]))[0]
            for system, x in made.items():
                file = out / "test" / f"{snr_db} dB" / system / f"{name}.wav"
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, x[0].numpy(), RATE, subtype="FLOAT")
    print("| SNR | system | steps | SI-SDR dB | LSD | STOI | ESTOI | PESQ |\n|---|---|---|---|---|---|---|---|")
    for snr_db in SNR_DB:
        root = out / "test" / f"{snr_db} dB"
        order = ["body microphone", "air microphone", *(f"{name} (model)" for name in names)]
        found = compare(root / "reference", {name: root / name for name in order}, align=False, baseline="air microphone")
        (out / f"test-{snr_db}.json").write_text(found.to_json())
        for system in order:
            mean = found.row(system=system)["mean"]
            file = out / system.removesuffix(" (model)") / "steps.json"
            steps = json.loads(file.read_text())["steps"] if file.is_file() else "–"
            cells = " | ".join(f"{mean[m]:.{1 if m == 'si_sdr' else 2}f}" if mean.get(m) is not None else "–" for m in METRICS)
            print(f"| {snr_db} dB | {system} | {steps} | {cells.replace('-', '−')} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA")
    parser.add_argument("arms", nargs="*", default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=24, help="test voices")
    parser.add_argument("--run", type=Path, default=Path("runs/fusion"))
    options = parser.parse_args()
    if unknown := set(options.arms) - set(ARMS):
        parser.error(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    out: Path = options.run
    data.prepare(options.folder, out / "packed", RATE, "speech48", lambda line: print(line, file=sys.stderr))
    for name in options.arms:
        if not (out / "models" / name).is_dir():
            train_arm(name, out, options.minutes, options.seed)
    measure(options.folder, out, options.arms, options.clips)


if __name__ == "__main__":
    main()
