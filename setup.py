"""Packaging of bwe; the only place that says what it needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

VERSION = re.search(r'^__version__ = "(.+)"', (ROOT / "bwe" / "__init__.py").read_text(encoding="utf-8"), re.M)[1]
README = ROOT / "README.md"

EXTRAS = {
    "train": ["wandb>=0.18", "tensorboard>=2.16", "matplotlib>=3.8", "tqdm>=4.60"],
    "eval": ["pesq>=0.0.4", "pystoi>=0.4", "soxr>=0.5"],
    "f0": ["pyworld>=0.3.4", "setuptools<82"],  # pyworld imports pkg_resources, which setuptools 82 has no more
    "crepe": ["torchcrepe>=0.0.23"],
    "praat": ["praat-parselmouth>=0.4.5"],  # GPL-3, hence by itself
    "pyin": ["librosa>=0.10"],
    "mos": ["torchmetrics[audio]>=1.4"],
    "e2e": ["playwright>=1.50"],
    "formats": ["av>=14"],
    "onnx": ["onnxruntime>=1.20", "onnx>=1.17", "onnxscript>=0.5"],
    "stream": ["sounddevice>=0.5"],
    "ray": ["ray[data]>=2.60,<2.64"],
    "vibravox": ["pyarrow>=17"],
    "dev": [
        "pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "ruff>=0.9", "mypy>=1.13", "av>=14",
        "onnxruntime>=1.20", "onnx>=1.17", "onnxscript>=0.5", "pyworld>=0.3.4", "setuptools<82",
        "pyarrow>=17",
    ],
}  # fmt: skip
# Without what is GPL-licensed, and without what takes more room than the rest of an extra is worth.
APART = ("praat", "crepe", "pyin", "mos", "e2e")
EXTRAS["all"] = [requirement for extra in sorted(EXTRAS) if extra not in APART for requirement in EXTRAS[extra]]

# pretrained/ lies beside the package in the repository and inside it, as bwe/pretrained, in the wheel. A folder without
# a card is no model that ships.
MODELS = sorted(card.parent.name for card in (ROOT / "pretrained").glob("*/README.md"))
FILES = ("config.json", "model.safetensors", "README.md")

setup(
    name="bwe",
    version=VERSION,
    description="Audio bandwidth extension in the waveform domain: speech, music, body microphones",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    packages=[*find_packages(include=["bwe", "bwe.*"]), *(["bwe.pretrained"] if MODELS else [])],
    package_dir={"bwe": "bwe", "bwe.pretrained": "pretrained"} if MODELS else {"bwe": "bwe"},
    package_data={
        "bwe": ["py.typed"],
        "bwe.pretrained": [f"{model}/{name}" for model in MODELS for name in FILES],
    },
    python_requires=">=3.11",
    install_requires=[
        # Above 2.13 nothing was tested, and torchaudio 2.11 is the newest there is.
        "torch>=2.11,<2.14",
        "torchaudio>=2.11,<2.12",
        "numpy>=1.26,<3",
        "scipy>=1.11",
        "soundfile>=0.13",
        "einops>=0.8",
        "auraloss==0.4.0",
        "safetensors>=0.5",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["bwe = bwe.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
        "Typing :: Typed",
    ],
)
