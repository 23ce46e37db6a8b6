"""Videos on their way into shards: judged by their container, or encoded again at a known cost."""

import json

import numpy as np
import pytest

from cosmos_wds.data.index import ShardIndex
from cosmos_wds.data.mp4 import Damaged, NotUnderstood, read_track
from cosmos_wds.data.video import decode, encode, examine, probe, resize
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import Pipeline
from cosmos_wds.prepare import shard
from tests.conftest import moving_frames, write_episode


@pytest.fixture(scope="module")
def video():
    """Fifty frames with several NAL units and B frames."""
    return encode(moving_frames(50, 64, 96), fps=5, gop=12)


def test_the_container_says_what_decoding_finds(video):
    for content in (video, encode(moving_frames(3, 32, 48), fps=30, tune="fastdecode")):
        assert examine(content, name="v") == probe(content)
    track = read_track(video)
    assert (track.codec, track.frames, track.height, track.width) == ("avc1", 50, 64, 96)
    assert track.fps == 5 and track.key_frames >= 5


def test_no_cut_is_taken_for_whole(video):
    for size in range(1, len(video), 37):
        with pytest.raises((Damaged, NotUnderstood)):
            read_track(video[:size])


def test_holes_and_rubbish_are_noticed(video):
    rng = np.random.default_rng(0)
    begin, end = video.index(b"mdat") + 4, video.index(b"moov") - 4
    if begin > end:
        begin, end = video.index(b"mdat") + 4, len(video)
    assert end - begin > 3000
    for _ in range(50):
        at = int(rng.integers(begin, end - 600))
        holed = video[:at] + bytes(600) + video[at + 600 :]
        with pytest.raises(Damaged):
            read_track(holed)
    shifted = video[: begin + 100] + video[begin + 101 : end] + b"\1" + video[end:]
    with pytest.raises(Damaged):
        read_track(shifted)


@pytest.mark.parametrize(
    "content", [b"", b"hello", bytes(4000), b"\0\0\0\x18ftypmp42" + b"\1" * 99]
)
def test_what_is_no_video_is_one_line(content):
    with pytest.raises(DataError, match=r"^a/rgb\.mp4: ") as error:
        examine(content, name="a/rgb.mp4")
    assert "\n" not in str(error.value)


def test_other_bytes_never_crash_the_parser(video):
    rng = np.random.default_rng(1)
    for _ in range(300):
        broken = bytearray(video)
        for at in rng.integers(0, len(video), 3):
            broken[at] = rng.integers(256)
        try:
            track = read_track(bytes(broken))
        except (Damaged, NotUnderstood):
            continue
        assert track.frames >= 0


def settings(raw, shards, **video):
    return Pipeline.model_validate(
        {"source": {"path": str(raw)}, "shards": {"path": str(shards)}, "video": video}
    )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for number in range(3):
        write_episode(root, "train", number, frames=20, height=96, width=128, cameras=2)
    return root


def test_videos_are_encoded_again_and_the_loss_is_told(raw, tmp_path, capsys):
    again = settings(raw, tmp_path / "s", height=48, width=64, gop=40, crf=12, tune="fastdecode")
    shard(again)
    index = ShardIndex.read(tmp_path / "s")
    split = index.split("train")
    for row in range(3):
        for member in ("mp4", "1.mp4"):
            content = split.read(row, member)
            original = (raw / f"videos/train/{row}/rgb{member[:-4]}.mp4").read_bytes()
            wanted = resize(decode(original), 48, 64)
            found = decode(content)
            assert found.shape == wanted.shape == (20, 48, 64, 3)
            assert 10 * np.log10(255**2 / np.mean((found * 1.0 - wanted) ** 2)) > 30
            assert read_track(content).key_frames == 1
        assert split.read_json(row)["height"] == 48
    said = index.table["video"]
    assert said["encoding"] == "h264" and said["gop"] == 40 and said["psnr"]["episodes"] == 1
    wanted = resize(decode((raw / "videos/train/0/rgb.mp4").read_bytes()), 48, 64)
    error = np.mean((decode(split.read(0, "mp4")) * 1.0 - wanted) ** 2)
    assert abs(said["psnr"]["mean"] - 10 * np.log10(255**2 / error)) < 0.01
    assert f"PSNR {said['psnr']['mean']:.1f} dB" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"differ in video \(was"):
        shard(settings(raw, tmp_path / "s"))


def test_encoding_again_gives_the_same_bytes_on_any_number_of_workers(raw, tmp_path):
    for workers in (1, 2):
        made = settings(raw, tmp_path / str(workers), codec="h264")
        shards = made.shards.model_copy(update={"workers": workers, "megabytes": 1})
        shard(made.model_copy(update={"shards": shards}))
    names = sorted(p.name for p in (tmp_path / "1").iterdir())
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_thorough_check_decodes_every_frame(tmp_path):
    path = write_episode(tmp_path / "raw", "train", 0, frames=30, height=96, width=128, grain=60)
    video = tmp_path / "raw" / json.loads(path.read_text())["videos"][0]["video_path"]
    content = bytearray(video.read_bytes())
    rng = np.random.default_rng(0)
    begin = content.index(b"mdat") + 1000
    content[begin : begin + 4000] = rng.integers(1, 255, 4000, np.uint8).tobytes()
    write_episode(tmp_path / "raw", "train", 1)
    video.write_bytes(content)
    summary = shard(settings(tmp_path / "raw", tmp_path / "s", check="decode"))
    assert len(summary.rejected) == 1


def test_impossible_sizes_are_refused():
    from cosmos_wds.config import parse
    from cosmos_wds.errors import ConfigError

    for video in ({"height": 48}, {"height": 47, "width": 64}, {"crf": 99}, {"gop": -1}):
        with pytest.raises(ConfigError, match=r"\[video\]"):
            parse(Pipeline, {"video": video}, origin="p.toml")
