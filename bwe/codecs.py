"""Lossy codecs as a degradation: encode, decode, and give back what is left, sample-aligned with the input."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Literal, get_args

import numpy as np
import soundfile as sf

from bwe.errors import AudioError

Codec = Literal["mp3", "opus", "vorbis", "aac", "gsm", "amr", "ulaw", "alaw"]

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
MPEG_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)

# Codecs for `transcode`: container and sample format in libsndfile's names; encoder, decoder, sample format and delay in
# samples in FFmpeg's. Delays are measured: AAC's first frame is priming, AMR looks 5 ms ahead.
_SNDFILE_CODECS = {
    "mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS"), "vorbis": ("OGG", "VORBIS"), "gsm": ("WAV", "GSM610"),
    "ulaw": ("AU", "ULAW"), "alaw": ("AU", "ALAW"),
}  # fmt: skip
_FFMPEG_CODECS = {"aac": ("aac", "aac", "fltp", 1024), "amr": ("libopencore_amrnb", "amrnb", "s16", 40)}
_TELEPHONE = (8_000,)
_CODEC_RATES = {
    "mp3": MPEG_RATES, "opus": OPUS_RATES, "vorbis": MPEG_RATES,
    "aac": MPEG_RATES, "gsm": _TELEPHONE, "amr": _TELEPHONE, "ulaw": _TELEPHONE, "alaw": _TELEPHONE,
}  # fmt: skip
# Encoder (576) and decoder (529) delay of LAME, left in the sound where a frame is too short to hold the header that says so.
_LAME_DELAY = 1105
# Bit rates per channel in bit/s of Vorbis at 44.1 and 48 kHz, qualities -0.1 to 1 (libvorbis, rate_mapping_44_un).
_VORBIS_RATES = (32e3, 48e3, 60e3, 70e3, 80e3, 86e3, 96e3, 110e3, 120e3, 140e3, 160e3, 240e3)


def transcode(x: np.ndarray, sr: int, codec: Codec, bitrate: int) -> np.ndarray:
    """Encode ``x``, float32 ``(T,)`` within ±1, at about ``bitrate`` bit/s and decode it again: ``(T,)``, without the delay.

    MP3, Opus, Vorbis, GSM 6.10, µ-law and A-law are libsndfile's, AAC and AMR-NB need the extra ``formats``. GSM and the
    laws have one bit rate and take no notice of ``bitrate``; AMR has eight, of 4750 to 12200. Raises AudioError where the
    codec is unknown or does not take the sample rate: 8 kHz for the telephone codecs, up to 48 kHz for the others.
    """
    if codec not in get_args(Codec):
        raise AudioError(f"no codec {codec!r}; use one of {', '.join(get_args(Codec))}")
    if sr not in _CODEC_RATES[codec]:
        raise AudioError(f"{codec} cannot encode {sr} Hz; resample to one of {', '.join(map(str, _CODEC_RATES[codec]))} Hz")
    y = _ffmpeg_round_trip(x, sr, codec, bitrate) if codec in _FFMPEG_CODECS else _sndfile_round_trip(x, sr, codec, bitrate)
    return np.pad(y[: len(x)], (0, max(0, len(x) - len(y))))


def _sndfile_round_trip(x: np.ndarray, sr: int, codec: Codec, bitrate: int) -> np.ndarray:
    file_format, subtype = _SNDFILE_CODECS[codec]
    quality: dict[str, Any] = {}
    if codec == "mp3":  # levels 0 to 1 are the bit rates of the MPEG version, from the highest down
        low, high = (32e3, 320e3) if sr >= 32_000 else (8e3, 160e3) if sr >= 16_000 else (8e3, 64e3)
        quality = {"compression_level": (high - bitrate) / (high - low), "bitrate_mode": "CONSTANT"}
    elif codec == "opus":
        quality = {"compression_level": 1 - (bitrate - 6e3) / 250e3}
    elif codec == "vorbis":
        quality = {"compression_level": 1 - float(np.interp(bitrate, _VORBIS_RATES, np.arange(-1, 11) / 10))}
    if quality:  # at exactly 1 libsndfile refuses
        quality["compression_level"] = min(max(quality["compression_level"], 0.0), 0.999)
    stream = io.BytesIO()
    with sf.SoundFile(stream, "w", sr, 1, subtype, format=file_format, **quality) as file:
        for start in range(0, len(x), sr):  # longer writes overflow the stack of libsndfile's Vorbis encoder
            file.write(x[start : start + sr])
    stream.seek(0)
    y, _ = sf.read(stream, dtype="float32")
    return y[_LAME_DELAY:] if codec == "mp3" and len(y) > len(x) else y


def _ffmpeg_round_trip(x: np.ndarray, sr: int, codec: Codec, bitrate: int) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"the codec {codec!r} needs PyAV: pip install 'bwe[formats]'") from error
    encoder_name, decoder_name, sample_format, delay = _FFMPEG_CODECS[codec]
    encoder: Any = av.CodecContext.create(encoder_name, "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = sr, "mono", sample_format, bitrate
    encoder.time_base = Fraction(1, sr)
    if codec == "aac":  # the default search takes several times as long
        encoder.options = {"aac_coder": "fast"}
    encoder.open()
    size = encoder.frame_size
    padded = np.pad(x, (0, delay + -(len(x) + delay) % size))
    frames = (np.rint(padded.clip(-1, 1) * 32767).astype(np.int16) if sample_format == "s16" else padded).reshape(-1, 1, size)
    decoder: Any = av.CodecContext.create(decoder_name, "r")
    decoder.sample_rate, decoder.layout, decoder.extradata = sr, "mono", encoder.extradata
    packets = []
    for index, samples in enumerate(frames):
        frame = av.AudioFrame.from_ndarray(samples, format=sample_format, layout="mono")
        frame.sample_rate, frame.pts = sr, index * size
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = [frame.to_ndarray()[0] for packet in [*packets, None] for frame in decoder.decode(packet)]
    return np.concatenate(decoded)[delay:]
