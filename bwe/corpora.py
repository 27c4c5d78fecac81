"""What recordings there are: folders, manifests, published sets as they unpack, pairs of a body and an air microphone.

Files are listed, hardly ever opened: what cannot be read shows when it is packed.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from bwe.errors import AudioError, ConfigError, OutputError, nearest

_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".aif", ".caf", ".w64"}
_SPLITS = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "dev": "valid", "test": "test"}

# sigsep/sigsep-mus-db, musdb/configs/mus.yaml: stem names and the list of validation tracks.
_MUSDB18_STEMS = ("mixture", "drums", "bass", "other", "vocals")
_MUSDB18_VALID = {
    "ANiMAL - Rockshow", "Actions - One Minute Smile", "Alexander Ross - Goodbye Bolero",
    "Clara Berry And Wooldog - Waltz For My Victims", "Fergessen - Nos Palpitants", "James May - On The Line",
    "Johnny Lokke - Promises & Lies", "Leaf - Summerghost", "Meaxic - Take A Step", "Patrick Talbot - A Reason To Leave",
    "Skelpolu - Human Mistakes", "Traffic Experiment - Sirens", "Triviul - Angelsaint", "Young Griffo - Pennies",
}  # fmt: skip

VIBRAVOX_SENSORS = (
    "throat_microphone", "forehead_accelerometer", "soft_in_ear_microphone", "rigid_in_ear_microphone",
    "temple_vibration_pickup",
)  # fmt: skip
_VIBRAVOX_AIR = "headset_microphone"
_PAIRS_COLUMNS = ("body", "air", "speaker", "sensor", "split", "body_channel", "air_channel")
# Of FMA's tracks.csv, whose cells hold biographies; csv stops at 128 KiB.
_LONGEST_CELL = 2**26


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One recording: `path`, its `speaker` (or track, or instrument), `split`, and where its own content ends in Hz
    (0: unknown, taken as half its sample rate). `seconds` is 0 where it is unknown."""

    path: str
    speaker: str
    split: str = "train"
    cutoff_hz: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PairClip:
    """What a body-conduction microphone and an air microphone recorded at once: two files, or two channels of one.

    Channels count from 0; `sensor` names the body microphone as its source does ("" where that does not).
    """

    body: str
    air: str
    speaker: str
    sensor: str
    split: str = "train"
    body_channel: int = 0
    air_channel: int = 0


class PairList(list[PairClip]):
    """Pairs, and in `unpaired` the files that were left out since their counterpart is missing or not certain."""

    unpaired: tuple[str, ...] = ()


_AnyClip = TypeVar("_AnyClip", Clip, PairClip)


class _Found(NamedTuple):
    pairs: list[PairClip]
    unpaired: list[str]


def clips(root: str | os.PathLike[str], cls: str | None = None, split: str | None = None) -> list[Clip]:
    """Lists the recordings below a folder, of one `split` ("train", "valid", "test") or of all.

    The first of these that the folder is:

    - a `manifest.csv` (columns path, and if known cls, split, speaker, cutoff_hz, seconds): its rows, of `cls` only if given;
    - MUSDB18-HQ, `{train,test}/TRACK/{mixture,drums,bass,other,vocals}.wav`. For training, stems and mixture: stems, so that
      mixes of different songs can be made on the fly, far more of them than 86 songs; and the mixture, since such mixes do not
      keep time and a mixture is what is extended later. Of "valid" (the 14 tracks of the set's own list) and "test", the
      mixture. Tracks are speakers. The compressed MUSDB18 (.stem.mp4) ends at 16 kHz and is not looked for;
    - FMA, `NNN/NNNNNN.mp3` in the folder or in `fma_{full,large,medium,small}` of it, a track in several of them taken once,
      in that order. With `fma_metadata/tracks.csv` in the folder or up to two above it, splits are the set's and artists are
      speakers; without it, or for tracks it lacks, a hash of the track's number decides, and tracks are speakers: an artist
      may then be heard in two splits. An MP3 ends where its encoder made it end, which the metadata does not say:
      `cutoff_hz` stays 0, so whoever trains on this teaches that the top band is often empty. Measure where content ends and
      write a manifest.csv with `cutoff_hz`, or train on something lossless;
    - every audio file, the name of its folder taken as the speaker, with splits of speakers (`speaker_split`).

    Sources: https://sigsep.github.io/datasets/musdb.html and sigsep/sigsep-mus-db (musdb/__init__.py, configs/mus.yaml);
    mdeff/fma (README.md, utils.py), arXiv:1612.01840 and https://paperswithcode.com/dataset/fma (no artist is in two splits).

    Raises:
        ConfigError: no such folder, a table that cannot be read, or nothing left after filtering.
    """
    folder = _folder(root)
    found = next(found for find in _CLIP_LAYOUTS if (found := find(folder, cls)) is not None)
    found = [clip for clip in found if split is None or clip.split == split]
    if not found:
        of_split = f" of split {split!r}" if split else ""
        hint = "; splits are of speakers (folders, two at least), or the column 'split' of a manifest.csv" if split else ""
        raise ConfigError(f"{folder}: no recordings{of_split}{hint}; is it the right folder?")
    return found


def pairs(
    root: str | os.PathLike[str],
    cls: str | None = None,
    split: str | None = None,
    sensor: str | None = None,
    *,
    two_channel: bool = False,
    body_channel: int = 0,
) -> PairList:
    """Lists the recordings below a folder that a body-conduction and a close air microphone made at once.

    The first of these that holds a pair:

    - `pairs.csv` with the columns body and air, paths relative to the folder, and if known speaker (else: the folder of
      `body`), sensor, split, body_channel, air_channel (else 0), cls;
    - `manifest.csv` (columns path, and if known cls, split, speaker, notes) with files `…_body_NNN` and `…_air_NNN`: of one
      folder and name, those of equal numbers, or else in order where there are equally many and numbers differ by one.
      The sensor follows `sensor=` in the notes;
    - ABCS, `Audio/{train,dev,test}/SPEAKER/….wav` of two channels, air then bone, "dev" being "valid". Its speakers are
      `SpeakerN` in file names;
    - `body/NAME.wav` and `air/NAME.wav`, or any other audio suffix, in the folder or in its train, valid and test; below
      these two, the first folder is the speaker (`body/SPEAKER/NAME.wav`), and with none all are of one speaker.

    With `two_channel` none of these: every audio file of two or more channels, of which `body_channel` is the body
    microphone and the other one of channels 0 and 1 the air microphone; the name of its folder is the speaker. Recordings
    of the ESMB corpus are 16 kHz stereo, one file for each earbud; users of it read air from channel 0 and bone from
    channel 1 (`two_channel=True, body_channel=1`). How its archive names folders could not be found out.

    Vibravox comes in parquet files: `unpack_vibravox` makes a folder with a pairs.csv of them.

    Sources: wangmou21/abcs and, for its folders, names and channels, aaaceo890/abc_asr (preprocessing/data_prep.py);
    elevoctech/ESMB-corpus.

    Args:
        cls: rows of this class only, where there is a table with classes.
        split: "train", "valid" or "test"; where nothing says which is which, speakers are split (`speaker_split`).
        sensor: only sensors whose name holds this; case does not matter, and "-", "_" and " " are one.

    Raises:
        ConfigError: no such folder, no pair in it, a table that cannot be read, or nothing left after filtering.
    """
    folder = _folder(root)
    if body_channel not in (0, 1):
        raise ConfigError(f"body_channel={body_channel}: the body microphone is in channel 0 or 1")
    lone: list[str] = []
    found = PairList()
    layouts = [lambda top, _: _two_channel(top, body_channel)] if two_channel else _PAIR_LAYOUTS.values()
    for find in layouts:
        these, unpaired = find(folder, cls)
        lone = lone or unpaired
        if these:
            found = PairList(these)
            found.unpaired = tuple(unpaired)
            break
    if not found and lone:
        what = "has fewer than two channels" if two_channel else "has no counterpart of the other microphone"
        more = f" ({len(lone) - 1} more like it)" if len(lone) > 1 else ""
        hint = "a pair is two channels of a file" if two_channel else "a pair is body/NAME.wav and air/NAME.wav"
        raise ConfigError(f"{lone[0]}: {what}, and there is no pair in {folder}{more}; {hint}")
    if not found:
        looked_for = "two-channel audio files" if two_channel else "; ".join(_PAIR_LAYOUTS)
        of_class = f" of class {cls!r}" if cls else ""
        raise ConfigError(
            f"{folder}: no pairs{of_class} of a body and an air microphone; looked for {looked_for}; files with both in "
            "their channels need two_channel=True, and Vibravox's parquet files unpack_vibravox"
        )
    kept = PairList(
        pair
        for pair in found
        if (split is None or pair.split == split) and (sensor is None or _plain(sensor) in _plain(pair.sensor))
    )
    kept.unpaired = found.unpaired
    if not kept:
        wishes = {"split": split, "sensor": sensor}
        asked = " and ".join(f"{name} {value!r}" for name, value in wishes.items() if value is not None)
        splits, sensors = (", ".join(sorted({getattr(p, name) or "''" for p in found})) for name in wishes)
        raise ConfigError(f"{folder}: no pairs of {asked}; there are the splits {splits} and the sensors {sensors}")
    return kept


def speaker_split(
    all_clips: Sequence[_AnyClip], valid: float = 0.05, test: float = 0.05, seed: int = 0, fewest_valid: int = 0
) -> list[_AnyClip]:
    """Assigns "train", "valid" and "test" by speaker: nobody is heard in two of them. Shares count speakers; for validation
    there are `fewest_valid` at least, as far as one is left to train on."""
    speakers = sorted({c.speaker for c in all_clips})
    order = np.random.default_rng(seed).permutation(len(speakers))
    n_valid = max(round(valid * len(speakers)), min(fewest_valid, len(speakers) - 1))
    n_test = round(test * len(speakers))
    names = ["valid"] * n_valid + ["test"] * n_test + ["train"] * (len(speakers) - n_valid - n_test)
    split = {speakers[i]: name for i, name in zip(order, names, strict=True)}
    return [replace(c, split=split[c.speaker]) for c in all_clips]


def unpack_vibravox(parquet_folder: str | os.PathLike[str], out: str | os.PathLike[str], sensor: str) -> Path:
    """Writes what one body sensor of Vibravox and the headset microphone recorded into `out`, with the `pairs.csv` of it.

    Files are as they are in the shards, to the bit: `out/SPLIT/{air,SENSOR}/SHARD_ROW.wav`. Sensors unpacked into one folder
    one after the other share the air files and the table, which is written last; one that is in it already is left alone.
    Another subset needs another folder.

    The set as published (Cnam-LMSSC/vibravox on the Hugging Face hub, CC BY 4.0): shards `SPLIT-NNNNN-of-NNNNN.parquet` with
    SPLIT train, validation or test, in a folder for each of speech_clean, speech_noisy, speechless_clean and
    speechless_noisy; columns `audio.headset_microphone` and `audio.SENSOR` (structs of bytes and path) and speaker_id.
    Sources: the cards of Cnam-LMSSC/vibravox-test and Cnam-LMSSC/vibravox_enhanced_by_EBEN there, of the same columns, and
    the loader in jhauret/vibravox (vibravox/lightning_datamodules/bwe.py).

    Args:
        parquet_folder: shards of one subset, or a folder with `speech_clean` in it.
        sensor: one of `VIBRAVOX_SENSORS`.

    Returns:
        the path of `pairs.csv`; `pairs(out)` reads it.

    Raises:
        ImportError: pyarrow is missing (the extra `vibravox`).
        ConfigError: an unknown sensor, no shards, or one that cannot be read, without the columns, or without audio.
        OutputError: `out` cannot be written.
    """
    if sensor not in VIBRAVOX_SENSORS:
        raise ConfigError(
            f"no sensor {sensor!r} in Vibravox; did you mean {nearest(sensor, VIBRAVOX_SENSORS)}? There are "
            f"{', '.join(VIBRAVOX_SENSORS)}"
        )
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Vibravox's shards need the pyarrow package: pip install 'bwe[vibravox]'") from error
    folder, target = _folder(parquet_folder), Path(out)
    shards = sorted(folder.glob("*.parquet")) or sorted((folder / "speech_clean").glob("*.parquet"))
    if not shards:
        raise ConfigError(f"{folder}: no .parquet files in it or in its speech_clean; give the folder of Vibravox's shards")
    table = target / "pairs.csv"
    rows = [{name: row.get(name) or "" for name in _PAIRS_COLUMNS} for row in _rows(table)] if table.is_file() else []
    if any(row["sensor"] == sensor for row in rows):
        return table
    columns = {"air": f"audio.{_VIBRAVOX_AIR}", "body": f"audio.{sensor}"}
    for shard in shards:
        split = _SPLITS.get(shard.name.partition("-")[0])
        if split is None:
            raise ConfigError(f"{shard}: a shard's name begins with its split: train-, validation- or test-")
        try:
            with pyarrow.parquet.ParquetFile(shard) as file:
                names = file.schema_arrow.names
                if missing := {*columns.values(), "speaker_id"} - set(names):
                    raise ConfigError(f"{shard}: no column {sorted(missing)[0]!r}; its columns are {', '.join(names)}")
                number = 0
                for batch in file.iter_batches(batch_size=16, columns=[*columns.values(), "speaker_id"]):
                    for item in batch.to_pylist():
                        row = dict.fromkeys(_PAIRS_COLUMNS, "")
                        for side, column in columns.items():
                            sound = (item[column] or {}).get("bytes") or b""
                            suffix = {b"RIFF": ".wav", b"fLaC": ".flac"}.get(sound[:4])
                            if suffix is None:
                                raise ConfigError(f"{shard}: row {number} has no WAV or FLAC file in {column!r}; get it again")
                            path = target / split / (side if side == "air" else sensor) / f"{shard.stem}_{number:05d}{suffix}"
                            if not path.exists():
                                _write(path, sound)
                            row[side] = path.relative_to(target).as_posix()
                        rows.append(row | {"speaker": str(item["speaker_id"]), "sensor": sensor, "split": split})
                        number += 1
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{shard}: not a parquet file that can be read ({reason}); get it again") from None
    text = io.StringIO()
    writer = csv.DictWriter(text, _PAIRS_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _write(table, text.getvalue().encode())
    return table


def _manifest(folder: Path, cls: str | None) -> list[Clip] | None:
    table = folder / "manifest.csv"
    if not table.is_file():
        return None
    return [
        Clip(
            path=str(folder / row["path"]),
            speaker=row.get("speaker") or Path(row["path"]).parent.name,
            split=row.get("split") or "train",
            cutoff_hz=_number(table, line, row, "cutoff_hz"),
            seconds=_number(table, line, row, "seconds"),
        )
        for line, row in enumerate(_manifest_rows(table), 2)
        if cls is None or row.get("cls", cls) == cls
    ]


def _musdb18(folder: Path, _: str | None) -> list[Clip] | None:
    found = []
    for part in ("train", "test"):
        for mixture in sorted((folder / part).glob("*/mixture.*")):
            if mixture.suffix.lower() not in _SUFFIXES:
                continue
            track = mixture.parent
            split = "valid" if part == "train" and track.name in _MUSDB18_VALID else part
            names = _MUSDB18_STEMS if split == "train" else _MUSDB18_STEMS[:1]
            files = (track / (name + mixture.suffix) for name in names)
            found += [Clip(path=str(file), speaker=track.name, split=split) for file in files if file.is_file()]
    return found or None


def _fma(folder: Path, _: str | None) -> list[Clip] | None:
    tops = [folder / f"fma_{size}" for size in ("full", "large", "medium", "small")]
    tracks: dict[str, Path] = {}
    for top in (folder, *tops):
        for file in sorted(top.glob("[0-9][0-9][0-9]/[0-9][0-9][0-9][0-9][0-9][0-9].mp3")):
            if file.stem.startswith(file.parent.name):
                tracks.setdefault(file.stem, file)
    if not tracks:
        return None
    above = (folder, *folder.absolute().parents[:2])
    table = next((file for top in above if (file := top / "fma_metadata" / "tracks.csv").is_file()), None)
    known = _fma_tracks(table) if table else {}
    found = []
    for track, file in sorted(tracks.items()):
        # The same file gets the same split whatever else there is, in fma_small as in fma_full.
        share = zlib.crc32(track.encode()) / 2**32
        speaker, split = known.get(int(track), (track, "valid" if share < 0.05 else "test" if share < 0.1 else "train"))
        found.append(Clip(path=str(file), speaker=speaker, split=split))
    return found


def _fma_tracks(table: Path) -> dict[int, tuple[str, str]]:
    """Artist and split by track of FMA's tracks.csv: two header lines of group and name, then "track_id" by itself."""
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        with table.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = list(zip_longest(next(lines, []), next(lines, []), fillvalue=""))
            if missing := {("set", "split"), ("artist", "id")} - set(header):
                raise ConfigError(f"{table}: no column {' '.join(sorted(missing)[0])!r} in its first two lines; get it again")
            split, artist = header.index(("set", "split")), header.index(("artist", "id"))
            return {
                int(line[0]): (f"artist-{line[artist]}", _SPLITS[line[split]])
                for line in lines
                if len(line) > max(split, artist) and line[0].isdigit() and line[split] in _SPLITS
            }
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table}: cannot be read ({error}); get fma_metadata again, or move it away") from None
    finally:
        csv.field_size_limit(limit)


def _every_file(folder: Path, _: str | None) -> list[Clip]:
    # A few folders of one's own are enough to tune a model, and nothing is trained without validation.
    return speaker_split([Clip(path=str(file), speaker=file.parent.name) for file in _audio(folder)], fewest_valid=1)


# In this order; the first that does not return None is what the folder is.
_CLIP_LAYOUTS: tuple[Callable[[Path, str | None], list[Clip] | None], ...] = (_manifest, _musdb18, _fma, _every_file)


def _pairs_table(folder: Path, cls: str | None) -> _Found:
    table = folder / "pairs.csv"
    if not table.is_file():
        return _Found([], [])
    rows = list(enumerate(_rows(table, "body", "air"), 2))
    rows = [(line, row) for line, row in rows if cls is None or row.get("cls", cls) == cls]
    found = [
        PairClip(
            body=str(folder / row["body"]),
            air=str(folder / row["air"]),
            speaker=row.get("speaker") or Path(row["body"]).parent.name,
            sensor=row.get("sensor") or "",
            split=row.get("split") or "train",
            body_channel=int(_number(table, line, row, "body_channel")),
            air_channel=int(_number(table, line, row, "air_channel")),
        )
        for line, row in rows
        if row["body"] and row["air"]
    ]
    lone = [str(folder / (row["body"] or row["air"])) for _, row in rows if bool(row["body"]) != bool(row["air"])]
    return _Found(found if rows and "split" in rows[0][1] else speaker_split(found), lone)


def _pairs_of_manifest(folder: Path, cls: str | None) -> _Found:
    table = folder / "manifest.csv"
    if not table.is_file():
        return _Found([], [])
    rows = [row for row in _manifest_rows(table) if cls is None or row.get("cls", cls) == cls]
    takes: dict[tuple[Path, str], dict[str, dict[int, dict[str, str]]]] = {}
    for row in rows:
        path = folder / row["path"]
        if match := re.fullmatch(r"(.+)_(body|air)(?:_(\d+))?", path.stem):
            sides = takes.setdefault((path.parent, match[1]), {"body": {}, "air": {}})
            sides[match[2]][int(match[3] or 0)] = row
    found, lone = [], []
    for sides in takes.values():
        body, air = (sorted(sides[side]) for side in ("body", "air"))
        if equal := set(body) & set(air):
            numbers = [(n, n) for n in sorted(equal)]
        else:
            numbers = [(b, a) for b, a in zip(body, air, strict=False) if len(body) == len(air) and abs(b - a) == 1]
        for b, a in numbers:
            row = sides["body"].pop(b)
            named = re.search(r"sensor=(.+?)(?=\s+\S+=|$)", row.get("notes") or "")
            found.append(
                PairClip(
                    body=str(folder / row["path"]),
                    air=str(folder / sides["air"].pop(a)["path"]),
                    speaker=row.get("speaker") or Path(row["path"]).parent.name,
                    sensor=named[1] if named else "",
                    split=row.get("split") or "train",
                )
            )
        lone += [str(folder / row["path"]) for side in sides.values() for row in side.values()]
    return _Found(found if rows and "split" in rows[0] else speaker_split(found), lone)


def _abcs(folder: Path, _: str | None) -> _Found:
    found: list[PairClip] = []
    lone: list[str] = []
    for name in ("train", "dev", "test"):
        these, unpaired = _two_channel(folder / "Audio" / name, 1)
        for pair in these:
            named = re.search(r"Speaker\d{1,3}", Path(pair.body).name)
            found.append(replace(pair, speaker=named[0] if named else pair.speaker, sensor="bone", split=_SPLITS[name]))
        lone += unpaired
    return _Found(found, lone)


def _paired_folders(folder: Path, _: str | None) -> _Found:
    found: list[PairClip] = []
    lone: list[str] = []
    for name in ("", "train", "valid", "test"):
        body, air = (
            {file.relative_to(top).with_suffix(""): file for file in _audio(top)}
            for top in (folder / name / "body", folder / name / "air")
        )
        these = [
            PairClip(
                body=str(body[key]),
                air=str(air[key]),
                speaker=key.parts[0] if len(key.parts) > 1 else folder.absolute().name,
                sensor="",
                split=name or "train",
            )
            for key in sorted(set(body) & set(air))
        ]
        found += these if name else speaker_split(these)
        lone += [str((body | air)[key]) for key in sorted(set(body) ^ set(air))]
    return _Found(found, lone)


def _two_channel(folder: Path, body_channel: int) -> _Found:
    from bwe import audio

    found, lone = [], []
    for file in _audio(folder):
        try:
            with audio.Reader(file) as reader:
                channels = reader.info.channels
        except AudioError:
            channels = 2  # whoever reads it says what is wrong with it
        if channels < 2:
            lone.append(str(file))
            continue
        found.append(
            PairClip(
                body=str(file),
                air=str(file),
                speaker=file.parent.name,
                sensor="",
                body_channel=body_channel,
                air_channel=1 - body_channel,
            )
        )
    return _Found(speaker_split(found), lone)


# In this order, with what to look for in words; the first that finds a pair is what the folder is.
_PAIR_LAYOUTS: dict[str, Callable[[Path, str | None], _Found]] = {
    "pairs.csv with columns body and air": _pairs_table,
    "manifest.csv with files …_body_NNN and …_air_NNN": _pairs_of_manifest,
    "Audio/{train,dev,test}/SPEAKER/….wav of two channels (ABCS)": _abcs,
    "body/NAME.wav and air/NAME.wav": _paired_folders,
}


def _folder(root: str | os.PathLike[str]) -> Path:
    folder = Path(root)
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such data folder; give one with data=FOLDER")
    return folder


def _audio(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)


def _rows(table: Path, *needed: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header line that has the columns `needed`."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            names = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{table}: cannot be read as CSV in UTF-8 ({error}); write it again") from None
    if missing := [name for name in needed if name not in names]:
        raise ConfigError(f"{table}: no column {missing[0]!r}; its columns are {', '.join(names)}")
    return rows


def _manifest_rows(table: Path) -> list[dict[str, str]]:
    rows = _rows(table, "path")
    if without := [line for line, row in enumerate(rows, 2) if not row["path"]]:
        raise ConfigError(f"{table}: row {without[0]} has nothing in the column 'path'; name its file, or delete the row")
    return rows


def _number(table: Path, line: int, row: dict[str, str], column: str) -> float:
    text = row.get(column) or "0"
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < np.inf:
        raise ConfigError(f"{table}: row {line} has {text!r} in the column {column!r}; write a number from 0 up, or nothing")
    return value


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]+", " ", name.lower())


def _write(path: Path, content: bytes) -> None:
    """A file that appears under its name complete or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); make room or choose another folder") from None
