"""Decoders that agree, damage that is seen, resize within one level of the reference."""

import gc
import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cosmos_wds.data import video as video_module
from cosmos_wds.data.decoders import has_decord
from cosmos_wds.data.video import decode, encode, fastest, probe, resize, write_video
from cosmos_wds.errors import DataError
from tests.conftest import moving_frames

av = pytest.importorskip("av")
GOLDEN = Path(__file__).parent / "golden"
INSTALLED = ["decord"] if has_decord() else []
OTHERS = [  # decord has no wheel everywhere
    pytest.param("decord", marks=pytest.mark.skipif(not has_decord(), reason="decord is not there"))
]
"""Decoders that are held to what PyAV gives."""


def encoded(frames, pix_fmt="yuv420p", file=None, movflags="", **tags):
    """An mp4 in memory with colour tags of its own, as cameras and other tools write them."""
    buffer, options = io.BytesIO(), {"movflags": movflags} if movflags else {}
    with av.open(file or buffer, "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        for key, value in tags.items():
            setattr(stream.codec_context, key, value)
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return Path(file).read_bytes() if file else buffer.getvalue()


@pytest.mark.parametrize("frames", [1, 2, 9, 400])
@pytest.mark.parametrize("gop", [0, 1])
def test_a_video_that_plays_at_once_has_its_heading_first(frames, gop):
    """However many frames, each a key frame or not; the frames are the same."""
    pictures = moving_frames(frames, 16, 32)
    plain = encode(pictures, gop=gop)
    at_once = encode(pictures, gop=gop, plays_at_once=True)
    assert plain.index(b"mdat") < plain.index(b"moov")
    assert at_once.index(b"moov") < at_once.index(b"mdat")
    assert probe(at_once) == probe(plain)
    assert np.array_equal(decode(at_once), decode(plain))


@pytest.mark.parametrize(
    ("pix_fmt", "tags"),
    [
        ("yuv420p", {}),
        ("yuv420p", {"colorspace": 1}),  # BT.709
        ("yuv420p", {"colorspace": 5}),  # BT.601
        ("yuv420p", {"color_range": 2}),  # full range
        ("yuvj420p", {}),
        ("yuv422p", {}),
        ("yuv444p", {}),
    ],
)
@pytest.mark.parametrize("other", OTHERS)
def test_decoders_give_equal_pixels(other, pix_fmt, tags):
    video = encoded(moving_frames(9, 96, 144), pix_fmt, **tags)
    one, two = decode(video, decoder=other), decode(video, decoder="pyav")
    assert one.shape == (9, 96, 144, 3) and one.dtype == np.uint8
    assert np.array_equal(one, two)


def test_frames_are_picked_by_number_in_any_order(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving_frames(30, 64, 96), fps=5, gop=10)
    whole = decode(path)
    for decoder in ("pyav", *INSTALLED):
        picked = decode(path.read_bytes(), [29, 3, 3, 11], decoder=decoder)
        assert np.array_equal(picked, whole[[29, 3, 3, 11]])
        with pytest.raises(DataError, match=r"a\.mp4: frame 30 wanted, the video has 30"):
            decode(path, [0, 30], decoder=decoder)


def test_pyav_reads_what_decord_cannot():
    pytest.importorskip("decord")
    video = encoded(moving_frames(5, 32, 48))
    with pytest.raises(DataError, match="decord cannot decode it"):
        decode(video, decoder="decord")
    assert np.array_equal(decode(video), decode(video, decoder="pyav"))


def test_what_is_written_comes_back_and_equal_frames_give_equal_bytes(tmp_path):
    frames = moving_frames(12, 64, 96)
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / "new" / name, frames, fps=5)
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert first == second
    facts = probe(first)
    assert (facts.frames, facts.height, facts.width, facts.fps) == (12, 64, 96, 5.0)
    error = np.mean((decode(first).astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 30
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.mp4", "b.mp4"]


def test_a_video_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="even heights and widths"):
        write_video(tmp_path / "odd.mp4", np.zeros((2, 33, 48, 3), np.uint8))
    with pytest.raises(DataError, match="at least one frame"):
        write_video(tmp_path / "none.mp4", np.zeros((0, 32, 48, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("faststart", [False, True])
def test_every_cut_is_noticed(tmp_path, faststart):
    """With `faststart` the table of frames comes first, so that a cut file still opens."""
    movflags = "faststart" if faststart else ""
    video = encoded(moving_frames(12, 64, 96), file=str(tmp_path / "a.mp4"), movflags=movflags)
    assert (video.find(b"moov") < video.find(b"mdat")) == faststart
    assert probe(video).frames == 12
    for keep in (1, 10, 100, len(video) // 2, len(video) - 100, len(video) - 1):
        with pytest.raises(DataError):
            probe(video[:keep], name="cut")


def stops_a_strict_decoder(video):
    """Whether libavcodec, told to stop at its first error in place of concealing it, does."""
    try:
        with av.open(io.BytesIO(video)) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            stream.codec_context.options = {"err_detect": "explode"}
            return any(frame.is_corrupt for frame in container.decode(stream))
    except av.FFmpegError:
        return True


def test_flipped_bytes_are_noticed():
    """H.264 has no checksums: a flip may give other but lawful pixels. All else is noticed.

    Here one flip of six is lawful; in other pictures one of ten.
    """
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 12, (30, 128, 160, 3), dtype=np.uint8)
    video = encode(np.minimum(moving_frames(30, 128, 160), 240) + grain, crf=23)
    begin, end = video.find(b"mdat") + 1000, video.find(b"moov")
    noticed = 0
    for place in rng.integers(begin, end, 200):
        flipped = bytearray(video)
        flipped[place] ^= 0xFF
        damaged = bytes(flipped)
        try:
            probe(damaged)
        except DataError:
            noticed += 1
            with pytest.raises(DataError, match="^a: "):  # nor is it concealed from training
                decode(damaged, range(30), name="a")
        else:
            assert not stops_a_strict_decoder(damaged), f"byte {place} passes"
    assert noticed >= 150
    assert probe(video).frames == 30 and not stops_a_strict_decoder(video)


def test_errors_name_the_file_and_the_reason(tmp_path):
    empty, text = tmp_path / "empty.mp4", tmp_path / "text.mp4"
    empty.touch()
    text.write_text("no video")
    for reader in (probe, decode, lambda p: decode(p, decoder="pyav")):
        with pytest.raises(DataError, match=r"empty\.mp4: empty video file"):
            reader(empty)
        with pytest.raises(DataError, match=r"gone\.mp4: no such video file"):
            reader(tmp_path / "gone.mp4")
        with pytest.raises(DataError, match=r"text\.mp4: "):
            reader(text)
    with pytest.raises(DataError, match="train-000000.tar: a.mp4: empty video"):
        decode(b"", name="train-000000.tar: a.mp4")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts /proc/self/fd")
def test_no_file_stays_open(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, moving_frames(4, 32, 48))
    (tmp_path / "cut.mp4").write_bytes(path.read_bytes()[:400])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        probe(path)
        decode(path)
        decode(path, decoder="pyav")
        with pytest.raises(DataError):
            probe(tmp_path / "cut.mp4")
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("case", ["aspect", "down_480x640", "same", "up"])
def test_resize_is_within_one_level_of_the_reference(case):
    golden = load_file(GOLDEN / "resize.safetensors")
    frames, wanted = (golden[f"{case}.{k}"].transpose(0, 2, 3, 1) for k in ("in", "uint8"))
    found = resize(frames, *wanted.shape[1:3])
    assert found.shape == wanted.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - wanted).max() <= (0 if case == "same" else 1)


@pytest.mark.parametrize("case", ["aspect", "down_480x640", "same", "up"])
def test_an_exact_resize_is_the_reference_s_to_the_bit(case):
    golden = load_file(GOLDEN / "resize.safetensors")
    frames, wanted = (golden[f"{case}.{k}"].transpose(0, 2, 3, 1) for k in ("in", "uint8"))
    assert np.array_equal(resize(frames, *wanted.shape[1:3], exact=True), wanted)


def test_resize_takes_read_only_and_strided_frames():
    frames = moving_frames(4, 64, 96)
    frames.flags.writeable = False
    wanted = resize(np.array(frames), 32, 48)
    assert np.array_equal(resize(frames, 32, 48), wanted)
    assert np.array_equal(resize(frames[::2], 32, 48), wanted[::2])


def test_frames_outlive_the_decoder_and_may_be_written_to(tmp_path):
    """decord's are its own memory, not a copy."""
    write_video(tmp_path / "a.mp4", moving_frames(6, 64, 80))
    wanted = decode(tmp_path / "a.mp4", decoder="pyav")
    kept = [decode(tmp_path / "a.mp4") for _ in range(20)]
    gc.collect()
    for frames in kept:
        assert np.array_equal(frames, wanted)
        assert frames.flags.writeable and frames.flags.c_contiguous
        frames[:] = 0
    assert np.array_equal(decode(tmp_path / "a.mp4"), wanted)


def test_whole_episodes_are_read_by_the_decoder_that_is_fastest_there(monkeypatch):
    """Each gives equal pixels (above)."""
    video = encode(moving_frames(6, 256, 320))
    monkeypatch.setattr(video_module, "has_decord", lambda: True)
    assert fastest(video, None) == fastest(video, range(6)) == fastest("a.mp4", None) == "pyav"
    assert fastest(video, [5]) == fastest("a.mp4", [5]) == fastest(b"no video", [5]) == "decord"
    monkeypatch.setattr(video_module, "has_decord", lambda: False)
    assert fastest(video, [5]) == "pyav"


@pytest.mark.parametrize("decoder", OTHERS)
def test_pyav_reads_on_where_the_fastest_fails(decoder, monkeypatch):
    video = encoded(moving_frames(5, 64, 96))
    monkeypatch.setattr(video_module, "fastest", lambda *_: decoder)
    with pytest.raises(DataError, match="cut: "):
        decode(video[: len(video) // 2], name="cut")
    assert np.array_equal(decode(video), decode(video, decoder="pyav"))
