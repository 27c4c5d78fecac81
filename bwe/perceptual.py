"""Perceptual measures: PESQ, STOI, a ViSQOL-class similarity and ViSQOL itself, predicted opinion scores, Fréchet distance.

Signals are (…, T), numpy or torch, float in [-1, 1]; results are float64 tensors of shape (…), one value per signal. Pairs are
compared sample by sample, nothing is aligned beforehand. What cannot be computed on a signal (silence, too short) is nan;
mismatched shapes and empty signals raise ValueError, a missing package ImportError, missing weights ModelError. Nothing here
downloads anything.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F
from torch import Tensor

from bwe import audio, dsp
from bwe._torchaudio import torchaudio
from bwe.errors import BweError, ModelError

Signal = Tensor | np.ndarray


def as_signal(x: Signal, name: str) -> Tensor:
    """`x` as a float64 tensor (…, T); ValueError where it has no samples or is complex."""
    t = torch.as_tensor(x)
    if t.dim() == 0 or t.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(t.shape)}: a metric needs (…, T) with at least one sample")
    if t.is_complex():
        raise ValueError(f"{name} is complex: a metric needs a real waveform")
    if t.device.type == "mps":  # no float64 there
        t = t.cpu()
    return t.detach().to(torch.float64)


def check_same_shape(ref: Tensor, est: Tensor) -> None:
    if ref.shape != est.shape:
        raise ValueError(f"ref {tuple(ref.shape)} and est {tuple(est.shape)} differ in shape: trim or pad one")


def as_pair(ref: Signal, est: Signal) -> tuple[Tensor, Tensor]:
    """Both as `as_signal` gives them, on one device; ValueError where their shapes differ."""
    r, e = as_signal(ref, "ref"), as_signal(est, "est")
    check_same_shape(r, e)
    return r, e.to(r.device)


def _one_by_one(score: Callable[[np.ndarray, np.ndarray], float], ref: Tensor, est: Tensor) -> Tensor:
    """`score` of each pair of signals that sound and are finite; nan for the others."""
    values = []
    count = math.prod(ref.shape[:-1])  # resampling may have left no samples
    for r, e in zip(*(x.reshape(count, x.shape[-1]).cpu().numpy() for x in (ref, est)), strict=True):
        usable = r.any() and np.isfinite(r).all() and np.isfinite(e).all()
        values.append(score(r, e) if usable else math.nan)
    return torch.tensor(values, dtype=torch.float64).reshape(ref.shape[:-1])


def load_pesq() -> ModuleType:
    try:
        import pesq
    except ImportError as error:
        raise ImportError("PESQ needs the pesq package: pip install 'bwe[eval]'") from error
    return pesq


# The package's C code keeps 50 utterances and crashes on more: at least 0.2 s each with 0.2 s between them. P.862 was made for
# recordings of about this length.
_LONGEST_PESQ = 10 * 16_000


def pesq_16khz(ref: Tensor, est: Tensor) -> Tensor:
    """`pesq_wb` of signals at 16 kHz."""
    package = load_pesq()

    def of_piece(r: np.ndarray, e: np.ndarray) -> float:
        if not r.any() or not e.any():
            return math.nan
        try:
            return float(package.pesq(16_000, r, e, "wb"))
        except (package.NoUtterancesError, package.BufferTooShortError):
            return math.nan

    def score(r: np.ndarray, e: np.ndarray) -> float:
        count = math.ceil(len(r) / _LONGEST_PESQ)
        pieces = zip(np.array_split(r, count), np.array_split(e, count), strict=True)
        scores = [value for piece in pieces if math.isfinite(value := of_piece(*piece))]
        return float(np.mean(scores)) if scores else math.nan

    return _one_by_one(score, ref, est)


def pesq_wb(ref: Signal, est: Signal, sr: int) -> Tensor:
    """Wideband PESQ as MOS-LQO from 1.04 to 4.64 (ITU-T P.862.2) by the pesq package, after `dsp.resample` to 16 kHz.

    Recordings above 10 s are cut into equal pieces of at most 10 s, whose scores are averaged; pieces in which either signal
    is silent are left out. nan for silence, less than 0.25 s, or no utterance of 0.2 s. PESQ hears nothing above 8 kHz and was
    made for telephony codecs: a generator can sound better and score worse.
    """
    r, e = as_pair(ref, est)
    return pesq_16khz(dsp.resample(r, sr, 16_000), dsp.resample(e, sr, 16_000))


def load_pystoi() -> ModuleType:
    try:
        import pystoi
        import pystoi.utils
    except ImportError as error:
        raise ImportError("STOI needs the pystoi package: pip install 'bwe[eval]'") from error
    return pystoi


def to_10khz(x: Tensor, sr: int) -> Tensor:
    """(…, T) by the resampler that pystoi takes, which copies that of Octave."""
    if sr == 10_000:
        return x
    utils = load_pystoi().utils
    flat = [utils.resample_oct(row, 10_000, sr) for row in x.reshape(-1, x.shape[-1]).cpu().numpy()]
    return torch.from_numpy(np.stack(flat)).reshape(*x.shape[:-1], -1)


def stoi_10khz(ref: Tensor, est: Tensor, extended: bool) -> Tensor:
    """`stoi` of signals at 10 kHz."""
    package = load_pystoi()

    def score(r: np.ndarray, e: np.ndarray) -> float:
        if len(r) <= 256:  # one frame
            return math.nan
        if not e.any():
            return 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            try:
                return float(package.stoi(r, e, 10_000, extended=extended))
            except RuntimeWarning:  # fewer than 30 frames sound
                return math.nan

    return _one_by_one(score, ref, est)


def stoi(ref: Signal, est: Signal, sr: int, extended: bool = False) -> Tensor:
    """Short-time objective intelligibility, 0 to 1, by the pystoi package.

    Taal et al., IEEE TASLP 2011; with `extended` ESTOI, Jensen & Taal, IEEE TASLP 2016. Both hear 150 Hz to 4.3 kHz. nan for a
    silent reference and where less than 0.4 s of it sound; 0 for a silent estimate.
    """
    r, e = as_pair(ref, est)
    return stoi_10khz(to_10khz(r, sr), to_10khz(e, sr), extended)


_BANDS = 32
_LOWEST_HZ = 50.0
_WINDOW_S = 0.08
_EAR_Q, _LEAST_ERB = 9.26449, 24.7  # Glasberg & Moore 1990
_PATCH = 30  # frames
_NSIM_FLOOR = -45.0  # in 10·log10 of RMS
_NSIM_RANGE = 45.0
_C1, _C3 = 0.01**2, 0.03**2 / 2


@lru_cache(maxsize=8)
def _gammatone_weights(sr: int, n_fft: int) -> Tensor:
    """Squared magnitude responses (bands, n_fft // 2 + 1) of fourth-order gammatone filters, gain 1 at their centres."""
    offset = _EAR_Q * _LEAST_ERB
    top, bottom = math.log(sr / 2 + offset), math.log(_LOWEST_HZ + offset)
    centre = torch.exp(bottom + (top - bottom) * torch.arange(_BANDS, dtype=torch.float64) / _BANDS) - offset
    width = 1.019 * (centre / _EAR_Q + _LEAST_ERB)
    hz = torch.linspace(0, sr / 2, n_fft // 2 + 1, dtype=torch.float64)
    return (1 + ((hz - centre[:, None]) / width[:, None]).square()).pow(-4)


@dataclass(frozen=True)
class Gammatone:
    """Power (…, bands, N) of a signal in gammatone bands, frame by frame, and its mean square (…)."""

    power: Tensor
    mean_square: Tensor


def gammatone(x: Tensor, sr: int) -> Gammatone:
    """(…, T) -> frames of 80 ms every 20 ms under a Hann window, 32 bands from 50 Hz to half the sample rate."""
    size = round(_WINDOW_S * sr)
    padded = F.pad(x, (0, max(0, size - x.shape[-1])))
    window = torch.hann_window(size, periodic=False, dtype=x.dtype, device=x.device)
    frames = torch.fft.rfft(padded.unfold(-1, size, size // 4) * window)
    power = frames.real.square() + frames.imag.square()
    weights = _gammatone_weights(sr, size).to(x.device) * (2 / size**2)
    return Gammatone((power @ weights.T).transpose(-1, -2), x.square().mean(-1))


@lru_cache(maxsize=1)
def _nsim_window() -> Tensor:
    side = torch.exp(torch.tensor([-2.0, 0.0, -2.0], dtype=torch.float64))  # standard deviation 0.5
    return torch.outer(side, side) / side.sum() ** 2


def nsim(ref: Gammatone, est: Gammatone) -> Tensor:
    """`gammatone_nsim` of two spectrograms."""
    gain = torch.where(est.mean_square > 0, ref.mean_square / est.mean_square, 1.0)
    levels = torch.stack([ref.power, est.power * gain[..., None, None]])
    levels = (5 * levels.log10()).clamp_min(_NSIM_FLOOR)
    levels = torch.maximum(levels, levels.amax((0, -2), keepdim=True) - _NSIM_RANGE)
    levels = levels - levels.amin((0, -2, -1), keepdim=True)

    frames = levels.shape[-1]
    patches = (frames - _PATCH // 2) // _PATCH
    if patches > 0:  # centred on whole patches: the first begins half of one after the start
        start = _PATCH // 2 - 1
        levels = levels[..., start : start + patches * _PATCH].unflatten(-1, (patches, _PATCH)).movedim(-2, 1)
    else:
        levels = levels[:, None]
    r, e = levels.reshape(2, -1, *levels.shape[-2:])
    products = F.pad(torch.stack([r, e, r * r, e * e, r * e], 1), (1, 1, 1, 1), mode="replicate")
    blurred = F.conv2d(products.flatten(0, 1)[:, None], _nsim_window().to(r.device)[None, None])
    mean_r, mean_e, square_r, square_e, cross = blurred.reshape(-1, 5, *r.shape[-2:]).unbind(1)
    intensity = (2 * mean_r * mean_e + _C1) / (mean_r.square() + mean_e.square() + _C1)
    spread = ((square_r - mean_r.square()) * (square_e - mean_e.square())).clamp_min(0).sqrt()
    structure = (cross - mean_r * mean_e + _C3) / (spread + _C3)
    value = (intensity * structure).mean((-2, -1)).reshape(max(1, patches), *ref.mean_square.shape).mean(0)
    return torch.where(ref.mean_square > 0, value, torch.nan)


def gammatone_nsim(ref: Signal, est: Signal, sr: int) -> Tensor:
    """Neurogram similarity of gammatone spectrograms, up to 1 for equal signals: the similarity at the heart of ViSQOL.

    As in ViSQOL's audio mode (Hines et al., ViSQOLAudio, JASA 137, 2015; Chinen et al., arXiv:2004.09584, and its reference
    code): the estimate is brought to the reference's level; 32 gammatone bands from 50 Hz to half the sample rate, RMS in
    windows of 80 ms every 20 ms; 10·log10 of it, floored at -45 and 45 below the louder signal's loudest band of the frame;
    NSIM with a Gaussian window of 3 × 3, its mean over patches of 30 frames.

    It is not ViSQOL: no MOS (ViSQOL maps the 32 band means by a trained regression, here they are averaged), no alignment
    (signals must run in step), and bands are weighted sums of FFT power instead of filters run in time, which leaves out what
    rings on beyond a window. At other rates than 48 kHz the bands lie elsewhere and figures do not compare. nan for a silent
    reference; a clip shorter than 45 frames (0.96 s) is one patch.
    """
    r, e = as_pair(ref, est)
    return nsim(gammatone(r, sr), gammatone(e, sr))


_VISQOL_MODEL = Path("model") / "libsvm_nu_svr_model.txt"


def visqol(ref: Signal, est: Signal, sr: int, model: str | os.PathLike[str] | None = None) -> Tensor:
    """MOS-LQO, 1 to about 4.75, of the official ViSQOL in audio mode, by its program `visqol` on the PATH.

    Both signals go to it as 16-bit WAV files of 48 kHz, turned down together where one would clip.

    Args:
        model: its regression model libsvm_nu_svr_model.txt; by default the one in a folder `model` beside or above the
            program, or the program's own choice.

    nan where ViSQOL gives no score for a pair (less than 0.9 s). Raises ImportError where there is no such program, BweError
    with its last words where it fails.
    """
    program = shutil.which("visqol")
    if program is None:
        raise ImportError(
            "ViSQOL needs the program visqol on the PATH: build it from https://github.com/google/visqol "
            "(bazel build :visqol -c opt) and link bazel-bin/visqol into a folder of the PATH"
        )
    r, e = (dsp.resample(x, sr, 48_000).cpu() for x in as_pair(ref, est))
    pairs = torch.stack([r, e]).reshape(2, -1, r.shape[-1])
    scores = [_run_visqol(program, pairs[:, i], model) for i in range(pairs.shape[1])]
    return torch.tensor(scores, dtype=torch.float64).reshape(r.shape[:-1])


def _run_visqol(program: str, pair: Tensor, model: str | os.PathLike[str] | None) -> float:
    pair = pair / pair.abs().max().clamp_min(1)
    with tempfile.TemporaryDirectory(prefix="bwe-visqol-") as folder:
        reference, degraded, scores = (Path(folder) / name for name in ("reference.wav", "degraded.wav", "scores.csv"))
        for path, x in zip((reference, degraded), pair, strict=True):
            audio.write(path, x[None].numpy(), 48_000, "PCM_16")
        command = [program, "--reference_file", str(reference), "--degraded_file", str(degraded), "--results_csv", str(scores)]
        if model is None:
            homes = [home for start in (Path(program), Path(program).resolve()) for home in start.parents[:2]]
            model = next((home / _VISQOL_MODEL for home in homes if (home / _VISQOL_MODEL).is_file()), None)
        if model is not None:
            command += ["--similarity_to_quality_model", os.fspath(model)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0:
            words = (done.stderr + done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
            raise BweError(f"{program} failed: {words[-1]}")
        if not scores.is_file():
            return math.nan
        return float(scores.read_text(encoding="utf-8").split()[-1].rpartition(",")[2])  # reference,degraded,moslqo


def _require_weights(name: str, files: list[Path]) -> None:
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise ModelError(f"{name}: no weights at {' and '.join(absent)}; nothing is downloaded, put the published ones there")


def _from_torchmetrics(name: str, module: str, function: str) -> Callable[..., Tensor]:
    try:
        imported: Any = importlib.import_module("torchmetrics.functional.audio")
        return getattr(getattr(imported, module), function)
    except (ImportError, AttributeError) as error:
        raise ImportError(f"{name} needs the torchmetrics package: pip install 'bwe[mos]'") from error


def dnsmos(x: Signal, sr: int, personalized: bool = False) -> dict[str, Tensor]:
    """Opinion scores of speech, 1 to 5, that DNSMOS predicts without a reference, by torchmetrics, at 16 kHz.

    Reddy et al., arXiv:2010.15258 ("p808") and arXiv:2110.01763 ("sig", "bak", "ovr"); `personalized` counts other talkers as
    noise. Clips shorter than 9 s are repeated. Raises ModelError where the weights are not in ~/.torchmetrics/DNSMOS.
    """
    home = Path("~/.torchmetrics/DNSMOS").expanduser()
    kind = "pDNSMOS" if personalized else "DNSMOS"
    _require_weights("DNSMOS", [home / kind / "sig_bak_ovr.onnx", home / "DNSMOS" / "model_v8.onnx"])
    predict = _from_torchmetrics("DNSMOS", "dnsmos", "deep_noise_suppression_mean_opinion_score")
    narrow = dsp.resample(as_signal(x, "x"), sr, 16_000).cpu().float()
    if narrow.shape[-1] == 0:
        table = torch.full((*narrow.shape[:-1], 4), torch.nan, dtype=torch.float64)
    else:
        scores = [predict(row, 16_000, personalized) for row in narrow.reshape(-1, narrow.shape[-1])]
        table = torch.stack(scores).reshape(*narrow.shape[:-1], 4).double()
    return dict(zip(("p808", "sig", "bak", "ovr"), table.unbind(-1), strict=True))


def nisqa(x: Signal, sr: int) -> dict[str, Tensor]:
    """Opinion scores of speech, 1 to 5, that NISQA predicts without a reference, by torchmetrics, up to 20 kHz.

    Mittag et al., Interspeech 2021: "mos", "noisiness", "discontinuity", "coloration", "loudness". nan for what is too short
    (less than about 0.2 s); longer than about 52 s raises ValueError. Raises ModelError where the weights are not in
    ~/.torchmetrics/NISQA.
    """
    _require_weights("NISQA", [Path("~/.torchmetrics/NISQA/nisqa.tar").expanduser()])
    predict = _from_torchmetrics("NISQA", "nisqa", "non_intrusive_speech_quality_assessment")
    signal = as_signal(x, "x").cpu().float()
    try:
        table = predict(signal, sr).double()
    except RuntimeError as error:
        if "too short" not in str(error):
            raise ValueError(f"NISQA takes no {signal.shape[-1] / sr:.0f} s at once ({error}): cut x into pieces") from error
        table = torch.full((*signal.shape[:-1], 5), torch.nan, dtype=torch.float64)
    return dict(zip(("mos", "noisiness", "discontinuity", "coloration", "loudness"), table.unbind(-1), strict=True))


def _squim_weights() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("TORCH_HOME", os.path.join(cache, "torch"))
    return Path(home).expanduser() / "hub" / "torchaudio" / "models" / "squim_objective_dns2020.pth"


@lru_cache(maxsize=1)
def _squim_model(weights: Path) -> torch.nn.Module:
    try:
        return torchaudio.pipelines.SQUIM_OBJECTIVE.get_model()
    except Exception as error:  # of many kinds, for a damaged file
        raise ModelError(f"{weights}: these are not the weights of SQUIM; put the published ones there") from error


def squim(x: Signal, sr: int) -> dict[str, Tensor]:
    """STOI, wideband PESQ and SI-SDR that TorchAudio-SQUIM predicts without a reference, at 16 kHz.

    Kumar et al., arXiv:2304.01448: "stoi", "pesq", "si_sdr". Raises ModelError where the weights are not in TorchAudio's
    cache, $TORCH_HOME/hub/torchaudio/models (by default ~/.cache/torch/hub/torchaudio/models).
    """
    weights = _squim_weights()
    _require_weights("SQUIM", [weights])
    model = _squim_model(weights)
    narrow = dsp.resample(as_signal(x, "x"), sr, 16_000).cpu().float()
    if narrow.shape[-1] < 64:  # the width of its first layer
        scores = [torch.full(narrow.shape[:-1], torch.nan)] * 3
    else:
        with torch.inference_mode():
            scores = model(narrow.reshape(-1, narrow.shape[-1]))
    values = [score.reshape(narrow.shape[:-1]).double() for score in scores]
    return dict(zip(("stoi", "pesq", "si_sdr"), values, strict=True))


_EMBED_SR = 48_000
_EMBED_HOP = 480
_EMBED_FRAMES = 100
_EMBED_MELS, _EMBED_CEPSTRA = 64, 20
_MODULATION_HZ = (1, 4, 12, 50)  # syllables, phones, roughness


def embed(x: Signal, sr: int) -> Tensor:
    """Features of windows of 1 s every 0.5 s, (N, D) with D = 72, for `frechet_distance`.

    From the log-mel spectrogram at 48 kHz (64 bands to 24 kHz, 10 ms, dB floored at 1e-8 of power): mean and deviation of 20
    cepstra (DCT-II, the 0th included) and deviation of their differences over 20 ms, then for four equal groups of bands the
    level in dB of the envelope's modulation at 1 to 4, 4 to 12 and 12 to 50 Hz. Windows of all signals in (…, T) follow one
    another; what ends earlier than 1 s is filled with silence.

    It was not learned: it knows spectral shape, level and rhythm, neither timbre as VGGish nor meaning as CLAP does.
    Distances compare only with others of this function, not with published FAD or FD figures, and only among sets of about
    the same size.
    """
    wide = dsp.resample(as_signal(x, "x"), sr, _EMBED_SR)
    wide = F.pad(wide, (0, max(0, _EMBED_FRAMES * _EMBED_HOP - wide.shape[-1])))
    wide = wide.reshape(-1, wide.shape[-1])
    bank = dsp.mel_filterbank(_EMBED_SR, 2048, _EMBED_MELS).to(wide)
    mel = bank.T @ dsp.power_spectrogram(wide, 2048, _EMBED_HOP)
    decibels = 10 * mel.clamp_min(1e-8).log10()
    windows = decibels.unfold(-1, _EMBED_FRAMES, _EMBED_FRAMES // 2).movedim(-2, 1).flatten(0, 1)  # (N, bands, frames)
    cepstra = torch.from_numpy(scipy.fft.dct(windows.cpu().numpy(), axis=1, norm="ortho")[:, :_EMBED_CEPSTRA])
    differences = cepstra[..., 2:] - cepstra[..., :-2]
    groups = windows.cpu().unflatten(1, (4, _EMBED_MELS // 4)).mean(2)
    modulation = torch.fft.rfft(groups - groups.mean(-1, keepdim=True)).abs().square() / _EMBED_FRAMES**2
    edges = itertools.pairwise(_MODULATION_HZ)  # a window of 1 s has bins 1 Hz apart
    swings = [10 * (modulation[..., low:high].sum(-1) + 1e-2).log10() for low, high in edges]
    return torch.cat([cepstra.mean(-1), cepstra.std(-1), differences.std(-1), *swings], dim=1)


def frechet_distance(ref_embeddings: Signal, est_embeddings: Signal) -> float:
    """Fréchet distance ‖μ − μ'‖² + tr(Σ + Σ' − 2(ΣΣ')^½) between Gaussians fitted to two sets of embeddings.

    Dowson & Landau, J. Multivariate Analysis 12, 1982; as FID (Heusel et al., arXiv:1706.08500) and FAD (Kilgour et al.,
    arXiv:1812.08466), covariances with N - 1. With fewer samples than dimensions it is biased upwards. The trace of the
    square root is taken from singular values, so that singular covariances do no harm.

    Args:
        ref_embeddings, est_embeddings: (N, D) and (N', D), at least two rows each.
    """
    sets = [torch.as_tensor(x).detach().to("cpu", torch.float64) for x in (ref_embeddings, est_embeddings)]
    for x, name in zip(sets, ("ref_embeddings", "est_embeddings"), strict=True):
        if x.dim() != 2 or x.shape[0] < 2 or x.shape[1] != sets[0].shape[-1]:
            raise ValueError(f"{name} has shape {tuple(x.shape)}: must be (N, D) with N ≥ 2 and the same D in both")
    means = [x.mean(0) for x in sets]
    # Σ = RᵀR. The eigenvalues of ΣΣ' are the squared singular values of R R'ᵀ.
    roots = [torch.linalg.qr((x - mean) / math.sqrt(len(x) - 1), mode="r")[1] for x, mean in zip(sets, means, strict=True)]
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + sum(root.square().sum() for root in roots) - 2 * shared
    return max(0.0, float(distance))
