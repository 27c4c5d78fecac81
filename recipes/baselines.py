"""The baselines and our generator, trained for equal time and measured by one instrument: the tables in README.md.

    python recipes/baselines.py DATA [ARM ...] [--minutes 6] [--bone-minutes 3] [--run runs/baselines]

`DATA` holds a `manifest.csv` with the classes `speech48` (splits train, valid, test) and, for the arms named bone-…, `bone`
(pairs of files `…_body_…` and `…_air_…` of one speaker). Time is processor time of the training process on one thread. A
finished arm is not trained again. Speech arms learn the 16 kHz task, cut-offs from 1.5 to
6 kHz; bone arms learn from the pairs of the split train alone, the polarity of each turned to that of the air microphone.
"""

import argparse
import csv
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

from bwe import audio, data, degrade, dsp, hub, train
from bwe.evaluate import Evaluation, compare, evaluate

RATE = 16_000
SPEECH = Path(__file__).parent / "speech.py"
COMMON = [
    "generator.sample_rate=16000",
    "valid_cutoffs=[2000,4000]",
    "degrade.cutoff_hz=[1500,6000]",
    "crops.speed=[1,1]",
    "crops.seconds=0.5",
    "degrade.eq_db=0",
    *(f"degrade.{damage}_share=0" for damage in ("codec", "shelf", "clip", "quantise", "dropout")),
    "batch=8",
    "steps=1000000",
    "optim.final=1.0",
    "optim.warmup=50",
    "optim.lr=1e-3",
    "precision=fp32",
    "valid_every=1000000",
    "checkpoint_every=1000000",
    "log_every=50",
]
ALONE = [f"discriminators.{kind}" for kind in ("periods=[]", "scales=0", "fft_sizes=[]", "bands=0")]
LOSSES = ("stft", "log_mel", "band_energy", "spectral_convergence", "complex_mse", "magnitude_mse", "waveform_mse", "own")


def losses(**weights: float) -> list[str]:
    """Overrides that leave only these losses, without discriminators."""
    return [*ALONE, *(f"losses.{name}={weights.get(name, 0.0)}" for name in LOSSES)]


MR_STFT = losses(stft=1.0, spectral_convergence=1.0)
# Our generator with 8 sub-bands of 1 kHz, as the 24 of 48 kHz are.
OURS = ["arch=seanet", "generator.bands=8"]
SEANET = ["arch=eben", "generator.bands=1", "generator.channels=[32,64,128,256,512]", "generator.strides=[2,4,4,8]"]
ADVERSARIAL = ["discriminators.subset=4", "optim.lr=5e-4"]
ARMS: dict[str, list[str]] = {
    "bilstm": ["arch=bilstm", *losses(own=1.0)],
    "waveunet": ["arch=waveunet", *losses(waveform_mse=1.0)],
    "audiounet": ["arch=audiounet", *losses(waveform_mse=1.0)],
    "dccrn-complex": ["arch=dccrn", *losses(complex_mse=1.0)],
    "dccrn-magnitude": ["arch=dccrn", *losses(complex_mse=1.0, magnitude_mse=2.0)],
    "dccrn-mrstft": ["arch=dccrn", *MR_STFT],
    "dpcrn": ["arch=dpcrn", *losses(complex_mse=2.0, magnitude_mse=1.0)],
    "seanet": [*SEANET, *ADVERSARIAL, "batch=4", "reconstruction_steps=180"],
    "eben": ["arch=eben", *ADVERSARIAL, "reconstruction_steps=400"],
    "ours": [*OURS, *ALONE],
    "ours-gan": [*OURS, *ADVERSARIAL, "reconstruction_steps=700"],
    "bone-bilstm": ["arch=bilstm", *losses(own=1.0)],
    "bone-dccrn": ["arch=dccrn", *losses(complex_mse=1.0, magnitude_mse=2.0)],
    "bone-dpcrn": ["arch=dpcrn", *losses(complex_mse=2.0, magnitude_mse=1.0)],
    "bone-audiounet": ["arch=audiounet", *losses(waveform_mse=1.0)],
    "bone-eben": ["arch=eben", *MR_STFT],
    "bone-ours": [*OURS, "generator.passthrough=false", *ALONE],
}
# Told to every network of the bone task; the known band ends nowhere in particular.
BONE_CUTOFF_HZ = 1000.0
SPEECH_METRICS = ("lsd", "lsd_lf", "lsd_hf", "hf_bias", "si_sdr", "pesq", "stoi", "nsim")
BONE_METRICS = ("lsd", "log_mel", "si_sdr", "pesq", "stoi", "estoi", "nsim")


def pairs(folder: Path, split: str) -> dict[str, tuple[Tensor, Tensor]]:
    """By speaker: body and air microphone, `(T,)` at 16 kHz, the former with the polarity of the latter."""
    found: dict[str, dict[str, Tensor]] = {}
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["cls"] == "bone" and row["split"] == split]
    for row in rows:
        x, info = audio.read(folder / row["path"])
        side = "body" if "_body_" in Path(row["path"]).name else "air"
        found.setdefault(row["speaker"], {})[side] = dsp.resample(torch.from_numpy(x).mean(0), info.sample_rate, RATE)
    aligned = {}
    for speaker, both in found.items():
        length = min(len(x) for x in both.values())
        body, air = both["body"][:length], both["air"][:length]
        # What both microphones hear well.
        low = [dsp.band_limit(x, RATE, 900.0) - dsp.band_limit(x, RATE, 80.0) for x in (body, air)]
        aligned[speaker] = body * float((low[0] * low[1]).sum().sign()), air
    return aligned


def pair_batches(signals: list[tuple[Tensor, Tensor]], batch: int, seconds: float, seed: int) -> Iterator[dict[str, Tensor]]:
    """Crops of pairs at random places and levels, without end."""
    rng = np.random.default_rng(seed)
    wanted = round(seconds * RATE)
    lengths = np.array([len(body) for body, _ in signals], float)
    while True:
        crops = []
        for number in rng.choice(len(signals), batch, p=lengths / lengths.sum()):
            body, air = signals[number]
            start, gain = int(rng.integers(len(body) - wanted)), 10 ** (rng.uniform(-12, 3) / 20)
            crops.append(torch.stack([body, air])[:, None, start : start + wanted] * gain)
        both = torch.stack(crops)
        yield {
            "input": both[:, 0],
            "target": both[:, 1],
            "cutoff_hz": torch.full((batch,), BONE_CUTOFF_HZ),
            "top_hz": torch.full((batch,), RATE / 2),
        }


def recipe_of(name: str, overrides: list[str]) -> train.Recipe:
    # The architecture first: the others change its config.
    own = sorted(ARMS[name], key=lambda override: not override.startswith("arch="))
    return train.load_recipe(SPEECH, [*overrides, own[0], *COMMON, *own[1:]])


def train_arm(name: str, folder: Path, out: Path, minutes: float, seed: int) -> None:
    run, packed = out / name, out / "packed"
    overrides = [f"data={packed}", f"minutes={minutes}", f"seed={seed}", f"crops.seed={seed}"]
    recipe = dataclasses.replace(recipe_of(name, overrides), name=name, card=card(name, minutes, seed))
    torch.set_num_threads(1)
    train.keep_memory()
    task = train.GANTask(recipe, data.whole(packed / "valid", recipe.valid_clips))
    trainer = train.Trainer(task, recipe, run, lambda line: print(line, file=sys.stderr), clock=time.process_time)
    if name.startswith("bone-"):
        signals = list(pairs(folder, "train").values())
        trainer.fit(lambda start: pair_batches(signals, recipe.batch, recipe.crops.seconds, seed))
    else:
        crops = data.Crops(packed / "train", recipe.crops, degrade.Degradation(recipe.degrade))
        trainer.fit(lambda start: data.batches(crops, recipe.batch, recipe.steps, start, recipe.workers))
    (run / "steps.json").write_text(json.dumps({"steps": trainer.step, "minutes": trainer.trained_s / 60}))
    shutil.copytree(run / "last", out / "models" / name)


def card(name: str, minutes: float, seed: int) -> str:
    settings = " ".join(ARMS[name])
    return f"# {name}\n\nArm of recipes/baselines.py, {minutes:g} minutes of processor time, seed {seed}: {settings}."


def trained(out: Path, name: str) -> str:
    file = out / name / "steps.json"
    if not file.is_file():
        return "–"
    found = json.loads(file.read_text())
    return f"{found['steps']} in {found['minutes']:.1f} min"


def table(found: Evaluation, metrics: tuple[str, ...], out: Path) -> None:
    """A Markdown row for each system, its figures at all cut-offs side by side."""
    tree = json.loads(found.to_json())
    known = {metric["name"]: metric for metric in tree["metrics"]}
    shown = [known[name] for name in metrics if name in known]
    print("| system | weights | steps | " + " | ".join(f"{m['title']} {m['unit']}".strip() for m in shown) + " |")
    print("|---" * (len(shown) + 3) + "|")
    for system in tree["systems"]:
        rows = [row for row in tree["rows"] if row["system"] == system["name"]]
        cells = [
            " / ".join("–" if (v := row["mean"].get(m["name"])) is None else f"{v:.{m['digits']}f}" for row in rows)
            for m in shown
        ]
        name = Path(system["name"]).name
        weights = "–" if not system["parameters"] else f"{system['parameters'] / 1e6:.2f} M"
        print(f"| {name} | {weights} | {trained(out, name)} | " + " | ".join(cells).replace("-", "−") + " |")
    print(flush=True)


def measure_bone(folder: Path, out: Path, names: list[str]) -> None:
    """Writes what each network makes of the test pairs, and compares the folders."""
    signals, root = pairs(folder, "test"), out / "bone"
    systems = {"unprocessed": None, **{name: hub.read(out / "models" / name)[0] for name in names}}
    for sensor in ("throat", "in-ear"):
        chosen = {speaker: pair for speaker, pair in signals.items() if speaker.startswith("eben") == (sensor == "in-ear")}
        for speaker, (body, air) in chosen.items():
            made = {"reference": air}
            for name, generator in systems.items():
                made[name] = body
                if generator is not None:
                    with torch.inference_mode():
                        made[name] = generator(body[None, None], torch.tensor([BONE_CUTOFF_HZ]))[0, 0]
            for name, x in made.items():
                target = root / sensor / name / f"{speaker}.wav"
                target.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(target, x.numpy(), RATE, subtype="FLOAT")
        print(f"Bone pairs, split test, {sensor}: {len(chosen)} files\n")
        folders = {name: root / sensor / name for name in systems}
        found = compare(root / sensor / "reference", folders, baseline="unprocessed")
        (out / f"bone-{sensor}.json").write_text(found.to_json())
        table(found, BONE_METRICS, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DATA")
    parser.add_argument("arms", nargs="*", default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--bone-minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, default=Path("runs/baselines"))
    parser.add_argument("--train-only", action="store_true")
    options = parser.parse_args()
    out: Path = options.run
    if unknown := set(options.arms) - set(ARMS):
        parser.error(f"no arm {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    data.prepare(options.folder, out / "packed", RATE, "speech48", lambda line: print(line, file=sys.stderr))
    for name in options.arms:
        if not (out / "models" / name).is_dir():
            minutes = options.bone_minutes if name.startswith("bone-") else options.minutes
            train_arm(name, options.folder, out, minutes, options.seed)
    if options.train_only:
        return
    speech = [name for name in options.arms if not name.startswith("bone-")]
    print("Speech to 48 kHz, speech48 test, brick wall at 4 / 8 kHz\n")
    wide = evaluate(
        ["sbr", "speech-48k-stream", "speech-48k"], options.folder, cutoffs=(4000, 8000), cls="speech48", split="test"
    )
    (out / "speech-48k.json").write_text(wide.to_json())
    table(wide, SPEECH_METRICS, out)
    print("Speech to 16 kHz, speech48 test, brick wall at 2 / 4 kHz\n")
    systems = ["sbr-16k", *(out / "models" / name for name in speech)]
    narrow = evaluate(systems, options.folder, cutoffs=(2000, 4000), cls="speech48", split="test")
    (out / "speech-16k.json").write_text(narrow.to_json())
    table(narrow, SPEECH_METRICS, out)
    measure_bone(options.folder, out, [name for name in options.arms if name.startswith("bone-")])


if __name__ == "__main__":
    main()
