"""What recordings there are: manifests, folders, published sets, and pairs of a body and an air microphone."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bwe import audio, corpora, data
from bwe.errors import ConfigError, OutputError

SR = 16_000
Voice = Callable[..., np.ndarray]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, voice: Voice) -> Write:
    """``write(name, channels=1)``: 0.2 s of voice in a file of `tmp_path`, another one for each name; returns its path."""

    def make(name: str, channels: int = 1) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, voice(SR // 5, SR, channels, seed=len(name)).T, SR)
        return path

    return make


def names(found: list[corpora.Clip], root: Path) -> dict[str, tuple[str, str]]:
    """Speaker and split by path relative to `root`."""
    return {Path(c.path).relative_to(root).as_posix(): (c.speaker, c.split) for c in found}


def sides(found: list[corpora.PairClip], root: Path) -> dict[str, str]:
    """Air by body file, relative to `root`."""
    return {Path(p.body).relative_to(root).as_posix(): Path(p.air).relative_to(root).as_posix() for p in found}


def test_folders_are_speakers_and_splits_never_share_one(tmp_path: Path, write: Write) -> None:
    for name in ("anna/0.flac", "anna/1.wav", "bert/0.mp3"):
        write(name)
    (tmp_path / "bert" / "notes.txt").write_text("no audio")
    found = names(corpora.clips(tmp_path), tmp_path)
    split = {path: split for path, (_, split) in found.items()}
    assert [speaker for speaker, _ in found.values()] == [path.partition("/")[0] for path in found]
    assert split["anna/0.flac"] == split["anna/1.wav"] != split["bert/0.mp3"]
    assert set(split.values()) == {"train", "valid"}  # of two, one to train on
    many = [corpora.Clip(path=f"{i}.wav", speaker=f"s{i % 50}") for i in range(200)]
    shared = corpora.speaker_split(many, valid=0.1, test=0.1, seed=1)
    by_split = {name: {c.speaker for c in shared if c.split == name} for name in ("train", "valid", "test")}
    assert [len(by_split[name]) for name in ("train", "valid", "test")] == [40, 5, 5]
    assert sum(len(s) for s in by_split.values()) == len(set.union(*by_split.values()))
    assert shared == corpora.speaker_split(many, valid=0.1, test=0.1, seed=1)


def test_one_folder_alone_cannot_be_split(tmp_path: Path, write: Write) -> None:
    write("anna/0.flac")
    assert len(corpora.clips(tmp_path, split="train")) == 1
    with pytest.raises(ConfigError, match=r"no recordings of split 'valid'; splits are of speakers \(folders, two at least\)"):
        corpora.clips(tmp_path, split="valid")


def test_manifest_is_filtered(tmp_path: Path) -> None:
    table = tmp_path / "manifest.csv"
    table.write_text(
        "path,cls,split,speaker,cutoff_hz\nanna/0.flac,speech,train,anna,20000\nbert/0.flac,music,train,x,\n"
        "anna/1.flac,speech,test,anna,\n"
    )
    found = corpora.clips(tmp_path, "speech", "train")
    assert [(Path(c.path).name, c.cutoff_hz) for c in found] == [("0.flac", 20_000.0)]
    with pytest.raises(ConfigError, match="no recordings of split 'valid'"):
        corpora.clips(tmp_path, "speech", "valid")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file\nx.flac\n", r"manifest\.csv: no column 'path'; its columns are file"),
        (b"", r"manifest\.csv: no column 'path'"),
        (b"path,cutoff_hz\na.flac,1\nb.flac,8 kHz\n", r"manifest\.csv: row 3 has '8 kHz' in the column 'cutoff_hz'"),
        (b"path,seconds\na.flac,nan\n", r"manifest\.csv: row 2 has 'nan' in the column 'seconds'"),
        (b"path,cls\na.flac,x\n,x\n", r"manifest\.csv: row 3 has nothing in the column 'path'"),
        (b"path\n\xff\xfe.flac\n", r"manifest\.csv: cannot be read as CSV in UTF-8"),
    ],
)
def test_a_broken_manifest_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        corpora.clips(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    for look in (corpora.clips, corpora.pairs):
        with pytest.raises(ConfigError, match="nowhere: no such data folder"):
            look(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no recordings"):
        corpora.clips(tmp_path)
    with pytest.raises(
        ConfigError, match=r"no pairs of a body and an air microphone; looked for pairs\.csv .*; manifest\.csv"
    ):
        corpora.pairs(tmp_path)


def test_musdb18_hq_trains_on_stems_and_keeps_its_test_set_apart(tmp_path: Path, write: Write) -> None:
    stems = ("mixture", "drums", "bass", "other", "vocals")
    (tmp_path / "train" / "Band - Song").mkdir(parents=True)
    (tmp_path / "train" / "Band - Song" / "mixture.txt").write_text("no audio")
    for track in ("train/Band - Song", "train/ANiMAL - Rockshow", "test/Other Band - Other Song"):
        for stem in stems:
            write(f"{track}/{stem}.wav", channels=2)
    found = names(corpora.clips(tmp_path), tmp_path)
    assert found == {
        **{f"train/Band - Song/{stem}.wav": ("Band - Song", "train") for stem in stems},
        "train/ANiMAL - Rockshow/mixture.wav": ("ANiMAL - Rockshow", "valid"),
        "test/Other Band - Other Song/mixture.wav": ("Other Band - Other Song", "test"),
    }
    assert len(corpora.clips(tmp_path, split="train")) == 5
    assert data.pack(corpora.clips(tmp_path, split="train"), tmp_path / "packed", SR, tmp_path) == []


def test_fma_has_the_splits_of_its_metadata(tmp_path: Path, write: Write) -> None:
    write("fma_small/000/000002.mp3")
    for track in ("000/000002", "000/000010", "000/000777", "123/123456"):
        write(f"fma_large/{track}.mp3")
    (tmp_path / "fma_metadata").mkdir()
    (tmp_path / "fma_metadata" / "tracks.csv").write_text(
        f',album,artist,artist,set,set,track\n,comments,bio,id,split,subset,bit_rate\ntrack_id,,,,,,\n'
        f'2,0,"A bio,\nof {"two " * 50_000} lines",1,training,small,256000\n10,0,,6,validation,large,192000\n'
        "123456,0,,7,test,large,320000\n",
        encoding="utf-8",
    )  # fmt: skip
    limit = csv.field_size_limit()
    found = names(corpora.clips(tmp_path), tmp_path)
    assert found.pop("fma_large/000/000777.mp3")[0] == "000777"
    assert found == {
        "fma_large/000/000002.mp3": ("artist-1", "train"),
        "fma_large/000/000010.mp3": ("artist-6", "valid"),
        "fma_large/123/123456.mp3": ("artist-7", "test"),
    }
    assert csv.field_size_limit() == limit
    # The set's own folder finds the metadata beside it.
    assert names(corpora.clips(tmp_path / "fma_small"), tmp_path) == {"fma_small/000/000002.mp3": ("artist-1", "train")}
    assert {c.cutoff_hz for c in corpora.clips(tmp_path)} == {0.0}


def test_fma_without_metadata_splits_by_track_whatever_else_is_there(tmp_path: Path) -> None:
    for number in range(400):
        file = tmp_path / "fma_medium" / "001" / f"{1000 + number:06d}.mp3"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    found = names(corpora.clips(tmp_path), tmp_path / "fma_medium")
    counts = [sum(split == name for _, split in found.values()) for name in ("train", "valid", "test")]
    assert sum(counts) == 400
    assert 320 < counts[0] < 390
    assert min(counts[1:]) >= 5
    for file in sorted((tmp_path / "fma_medium" / "001").iterdir())[::2]:
        file.unlink()
    fewer = names(corpora.clips(tmp_path), tmp_path / "fma_medium")
    assert len(fewer) == 200
    assert fewer.items() <= found.items()


def test_fma_metadata_that_is_something_else_is_named(tmp_path: Path, write: Write) -> None:
    write("000/000002.mp3")
    (tmp_path / "fma_metadata").mkdir()
    (tmp_path / "fma_metadata" / "tracks.csv").write_text("track_id,split\n2,training\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: no column 'artist id'"):
        corpora.clips(tmp_path)
    (tmp_path / "fma_metadata" / "tracks.csv").write_bytes(b",artist,set\n,id,split\n2,\xff,training\n")
    with pytest.raises(ConfigError, match=r"tracks\.csv: cannot be read .* get fma_metadata again"):
        corpora.clips(tmp_path)


def test_pairs_of_the_shared_manifest(shared_data: Path) -> None:
    found = corpora.pairs(shared_data, "bone")
    assert found.unpaired == ()
    assert {split: sum(p.split == split for p in found) for split in ("train", "test")} == {"train": 15, "test": 8}
    assert {p.sensor for p in found} == {"in-ear", "body (unnamed, fits throat)"}
    for pair in found:
        assert Path(pair.body).name.startswith(f"{pair.speaker}_body_")
        assert Path(pair.air).name.startswith(f"{pair.speaker}_air_")
        assert audio.read(pair.body)[0].shape == audio.read(pair.air)[0].shape
    assert {p.speaker for p in corpora.pairs(shared_data, sensor="In_Ear")} == {"eben-008", "eben-85dB", "eben-silence"}
    assert len(corpora.pairs(shared_data, "bone", "test", "throat")) == 5
    with pytest.raises(ConfigError, match="no pairs of class 'speech48'"):
        corpora.pairs(shared_data, "speech48")
    with pytest.raises(ConfigError, match=r"no pairs of split 'train' and sensor 'jaw'; there are the splits test, train and"):
        corpora.pairs(shared_data, "bone", "train", "jaw")


def test_pairs_of_a_manifest_are_never_guessed(tmp_path: Path) -> None:
    files = (
        "s1/s1_body_001", "s1/s1_air_001", "s1/s1_air_002",  # equal numbers; one air is left
        "s2/s2_air_001", "s2/s2_body_002", "s2/s2_air_003", "s2/s2_body_004",  # one after the other
        "s3/s3_air_001", "s3/s3_body_002", "s3/s3_air_003",  # who belongs to whom?
        "s4/s4_air_001", "s4/s4_body_008",  # far apart
        "s5/s5_body", "s5/s5_air", "s6/speech_007",
    )  # fmt: skip
    lines = "".join(f"{name}.flac,bone,{name.partition('/')[0]},\n" for name in files)
    (tmp_path / "manifest.csv").write_text("path,cls,speaker,notes\n" + lines)
    found = corpora.pairs(tmp_path, "bone")
    assert sides(found, tmp_path) == {
        "s1/s1_body_001.flac": "s1/s1_air_001.flac",
        "s2/s2_body_002.flac": "s2/s2_air_001.flac",
        "s2/s2_body_004.flac": "s2/s2_air_003.flac",
        "s5/s5_body.flac": "s5/s5_air.flac",
    }
    assert {Path(name).stem for name in found.unpaired} == {
        "s1_air_002", "s3_air_001", "s3_body_002", "s3_air_003", "s4_air_001", "s4_body_008",
    }  # fmt: skip


def test_pairs_table_says_everything(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text(
        "body,air,speaker,sensor,split,body_channel,air_channel\n"
        'b/1.wav,a/1.wav,"Doe, J.",throat,valid,,\nst/2.wav,st/2.wav,roe,in-ear,train,1,0\n'
        "/far/b.wav,/far/a.wav,,,,,\nb/3.wav,,,,,,\n"
    )
    found = corpora.pairs(tmp_path)
    first, second, third = found
    assert (first.speaker, first.sensor, first.split) == ("Doe, J.", "throat", "valid")
    assert (second.body, second.body_channel, second.air_channel) == (second.air, 1, 0)
    assert (third.body, third.speaker, third.split) == ("/far/b.wav", "far", "train")
    assert found.unpaired == (str(tmp_path / "b/3.wav"),)
    table.write_text("body,air\n" + "".join(f"{s}/b.wav,{s}/a.wav\n" for s in range(40)))
    split = [len(corpora.pairs(tmp_path, split=name)) for name in ("train", "valid", "test")]
    assert split == [36, 2, 2]
    table.write_text("body,air,air_channel\nb.wav,a.wav,left\n")
    with pytest.raises(ConfigError, match=r"pairs\.csv: row 2 has 'left' in the column 'air_channel'"):
        corpora.pairs(tmp_path)
    table.write_text("body,speaker\nb.wav,x\n")
    with pytest.raises(ConfigError, match=r"pairs\.csv: no column 'air'; its columns are body, speaker"):
        corpora.pairs(tmp_path)


def test_paired_folders(tmp_path: Path, write: Write) -> None:
    for name in ("body/anna/1.wav", "air/anna/1.flac", "body/bert/day2/1.wav", "air/bert/day2/1.wav", "body/anna/2.wav"):
        write(name)
    found = corpora.pairs(tmp_path)
    assert sides(found, tmp_path) == {
        "body/anna/1.wav": "air/anna/1.flac",
        "body/bert/day2/1.wav": "air/bert/day2/1.wav",
    }
    assert [p.speaker for p in found] == ["anna", "bert"]
    assert found.unpaired == (str(tmp_path / "body/anna/2.wav"),)
    for name in ("valid/body/1.wav", "valid/air/1.wav"):
        write(name)
    assert sides(corpora.pairs(tmp_path, split="valid"), tmp_path) == {"valid/body/1.wav": "valid/air/1.wav"}


def test_pairs_without_splits_are_split_by_speaker(tmp_path: Path) -> None:
    for number in range(80):
        for side in ("body", "air"):
            file = tmp_path / side / f"s{number % 40}" / f"{number}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    found = {name: corpora.pairs(tmp_path, split=name) for name in ("train", "valid", "test")}
    assert [len(pairs) for pairs in found.values()] == [72, 4, 4]
    speakers = [{p.speaker for p in pairs} for pairs in found.values()]
    assert [len(s) for s in speakers] == [36, 2, 2]
    assert len(set.union(*speakers)) == 40


def test_half_a_pair_alone_is_an_error_that_names_it(tmp_path: Path, write: Write) -> None:
    write("body/1.wav")
    write("body/2.wav")
    write("air/3.wav")
    with pytest.raises(ConfigError, match=r"body/1\.wav: has no counterpart .* no pair in .* \(2 more like it\)"):
        corpora.pairs(tmp_path)


def test_two_channel_files(tmp_path: Path, write: Write) -> None:
    write("anna/1.wav", channels=2)
    mono = write("anna/2.wav")
    with pytest.raises(ConfigError, match="two_channel=True"):
        corpora.pairs(tmp_path)
    (pair,) = found = corpora.pairs(tmp_path, two_channel=True)
    assert (pair.body, pair.speaker, pair.body_channel, pair.air_channel) == (pair.air, "anna", 0, 1)
    assert found.unpaired == (str(mono),)
    (pair,) = corpora.pairs(tmp_path, two_channel=True, body_channel=1)
    assert (pair.body_channel, pair.air_channel) == (1, 0)
    with pytest.raises(ConfigError, match="body_channel=2: the body microphone is in channel 0 or 1"):
        corpora.pairs(tmp_path, two_channel=True, body_channel=2)
    (tmp_path / "anna" / "1.wav").unlink()
    with pytest.raises(ConfigError, match=r"anna/2\.wav: has fewer than two channels"):
        corpora.pairs(tmp_path, two_channel=True)
    # A file that cannot be opened is listed: whoever reads it says what is wrong with it.
    (tmp_path / "anna" / "2.wav").write_bytes(b"RIFF, and then nothing")
    assert len(corpora.pairs(tmp_path, two_channel=True)) == 1


def test_abcs(tmp_path: Path, write: Write) -> None:
    for name in ("train/S1/Speaker1_C_0.wav", "dev/S8/Speaker8_C_1.wav", "test/other/x.wav"):
        write(f"Audio/{name}", channels=2)
    write("Audio/test_-5db/S1/Speaker1_C_0.wav")
    found = corpora.pairs(tmp_path)
    assert [(p.speaker, p.split, p.sensor) for p in found] == [
        ("Speaker1", "train", "bone"), ("Speaker8", "valid", "bone"), ("other", "test", "bone"),
    ]  # fmt: skip
    assert {(p.body_channel, p.air_channel) for p in found} == {(1, 0)}
    assert all(p.body == p.air for p in found)


@pytest.fixture
def vibravox(tmp_path: Path, voice: Voice) -> Path:
    """Two shards with the columns of Vibravox."""
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "hub" / "speech_clean"
    folder.mkdir(parents=True)

    def sound(seed: int) -> dict[str, object]:
        buffer = io.BytesIO()
        soundfile.write(buffer, voice(9600, 48_000, seed=seed).T, 48_000, subtype="FLOAT", format="WAV")
        return {"bytes": buffer.getvalue(), "path": f"{seed}.wav"}

    for number, split in enumerate(("train", "validation")):
        columns = {
            f"audio.{name}": [sound(100 * number + 10 * place + row) for row in range(2)]
            for place, name in enumerate(("headset_microphone", *corpora.VIBRAVOX_SENSORS))
        }
        speakers = [f"../{split}", f"b{number}"]
        table = pa.table({**columns, "speaker_id": speakers, "sentence_id": [1, 2], "duration": [0.2, 0.2]})
        pa.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder.parent


def test_vibravox_is_unpacked_bit_by_bit(vibravox: Path, tmp_path: Path, voice: Voice) -> None:
    out = tmp_path / "out"
    table = corpora.unpack_vibravox(vibravox, out, "throat_microphone")
    assert table == out / "pairs.csv"
    found = corpora.pairs(out)
    assert [(p.speaker, p.split, p.sensor) for p in found] == [
        ("../train", "train", "throat_microphone"), ("b0", "train", "throat_microphone"),
        ("../validation", "valid", "throat_microphone"), ("b1", "valid", "throat_microphone"),
    ]  # fmt: skip
    for pair, seed in zip(found, (0, 1, 100, 101), strict=True):
        assert np.array_equal(audio.read(pair.air)[0], voice(9600, 48_000, seed=seed))
        assert np.array_equal(audio.read(pair.body)[0], voice(9600, 48_000, seed=seed + 10))
    assert {p.name for p in tmp_path.iterdir()} == {"hub", "out"}

    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.*")}
    corpora.unpack_vibravox(vibravox, out, "throat_microphone")
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.*")} == before
    corpora.unpack_vibravox(vibravox / "speech_clean", out, "forehead_accelerometer")
    assert len(corpora.pairs(out)) == 8
    air = list(out.glob("*/air/*.wav"))
    assert len(air) == 4
    assert all(file.stat().st_mtime_ns == before[file] for file in air)
    (pair,) = corpora.pairs(out, split="valid", sensor="forehead")[:1]
    assert np.array_equal(audio.read(pair.body)[0], voice(9600, 48_000, seed=120))
    assert len(list(out.rglob("*.wav"))) == 12


def test_what_is_no_vibravox_is_named(vibravox: Path, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    out, shard = tmp_path / "out", vibravox / "speech_clean" / "train-00000-of-00001.parquet"
    with pytest.raises(ConfigError, match="no sensor 'throat' in Vibravox; did you mean throat_microphone"):
        corpora.unpack_vibravox(vibravox, out, "throat")
    with pytest.raises(ConfigError, match=r"out: no such data folder"):
        corpora.unpack_vibravox(out, out, "throat_microphone")
    with pytest.raises(ConfigError, match=r"tmp.*: no \.parquet files in it or in its speech_clean"):
        corpora.unpack_vibravox(tmp_path, out, "throat_microphone")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"train-00000-of-00001\.parquet: not a parquet file that can be read"):
        corpora.unpack_vibravox(vibravox, out, "throat_microphone")
    nothing = {"bytes": b"ID3 no wave", "path": "x"}
    for columns, message in (
        ({"audio": [nothing]}, r"no column 'audio\.headset_microphone'; its columns are audio"),
        (
            {"audio.headset_microphone": [nothing], "audio.throat_microphone": [nothing], "speaker_id": ["a"]},
            r"row 0 has no WAV or FLAC file in 'audio\.headset_microphone'",
        ),
    ):
        pa.parquet.write_table(pa.table(columns), shard)
        with pytest.raises(ConfigError, match=message):
            corpora.unpack_vibravox(vibravox, out, "throat_microphone")
    assert not (out / "pairs.csv").exists()
    shard.write_bytes(whole)
    (tmp_path / "file").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match=r"train-00000-of-00001_00000\.wav: cannot be written"):
        corpora.unpack_vibravox(vibravox, tmp_path / "file", "throat_microphone")
    shard.rename(shard.with_name("0000.parquet"))
    with pytest.raises(ConfigError, match=r"0000\.parquet: a shard's name begins with its split"):
        corpora.unpack_vibravox(vibravox, tmp_path / "out2", "throat_microphone")


def test_a_missing_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"bwe\[vibravox\]"):
        corpora.unpack_vibravox(tmp_path, tmp_path / "out", "throat_microphone")
