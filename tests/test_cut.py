"""Cutting an episode out of an mp4: exactly its frames, whatever the order they are coded in."""

import io
import struct

import av
import numpy as np
import pytest

from cosmos_wds.data.storage import LocalStorage
from cosmos_wds.data.video import decode, encode, examine
from cosmos_wds.errors import DataError
from cosmos_wds.sources.cut import cut
from tests.conftest import moving_frames
from tests.lerobot_sets import FPS, joined

FRAMES = moving_frames(40, 64, 64, 3)


def encoded(container="mp4", movflags="", **x264):
    """FRAMES in one encoding with options of x264."""
    content = io.BytesIO()
    params = ":".join(f"{key.replace('_', '-')}={value}" for key, value in x264.items())
    flags = {"movflags": movflags} if movflags else {}
    with av.open(content, "w", format=container, options=flags) as out:
        options = {"crf": "12", "x264-params": f"scenecut=0:{params}"}
        stream = out.add_stream("libx264", rate=FPS, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for image in FRAMES:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode())
    return content.getvalue()


def cut_of(folder, content, begin, count, **changes):
    (folder / "a.mp4").write_bytes(content)
    seconds = (begin + np.arange(count)) / FPS
    return cut(LocalStorage(folder), "a.mp4", seconds, **{"tolerance": 1e-4, "fps": FPS, **changes})


def assert_is(video, content, begin, count):
    """A cut shows these frames of the whole, and every reader of ours counts them alike."""
    made = video.read()
    assert examine(made, name="cut").frames == count and video.read() == made
    frames, wanted = decode(made, decoder="pyav"), decode(content, decoder="pyav")
    if video.how == "encoded again":
        errors = np.abs(frames.astype(int)[:, None] - wanted[None]).mean(axis=(2, 3, 4))
        np.testing.assert_array_equal(errors.argmin(axis=1), np.arange(begin, begin + count))
        assert errors.min(axis=1).max() < 3
    else:
        np.testing.assert_array_equal(frames, wanted[begin : begin + count])
    np.testing.assert_array_equal(decode(made), frames)


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({"keyint": 8, "bframes": 0}, "copied"),
        ({"keyint": 8, "bframes": 3, "b_adapt": 0}, "copied"),
        ({"keyint": 8, "bframes": 3, "b_adapt": 0, "open_gop": 1}, "encoded again"),
        ({"keyint": 40, "bframes": 3}, "encoded again"),
        ({"keyint": 40, "intra_refresh": 1, "bframes": 0}, "encoded again"),
        ({"keyint": 1}, "copied"),
    ],
)
def test_eight_frames_of_forty(tmp_path, options, how):
    content = encoded(**options)
    video = cut_of(tmp_path, content, 16, 8)
    assert video.how == how
    assert_is(video, content, 16, 8)


@pytest.mark.parametrize("open_gop", [0, 1])
def test_every_cut_of_reordered_frames(tmp_path, open_gop):
    content = encoded(keyint=6, bframes=2, b_adapt=0, open_gop=open_gop)
    hows = set()
    for begin in (0, 1, 6, 7, 17, 30, 36):
        for count in (2, 5, 40 - begin):
            video = cut_of(tmp_path, content, begin, min(count, 40 - begin))
            assert_is(video, content, begin, len(video.wanted))
            hows.add(video.how)
    assert hows >= {"whole", "encoded again"} and ("copied" in hows) == (not open_gop)


def test_joined_encodings_come_apart_again(tmp_path):
    parts = [FRAMES[:7], FRAMES[7:11], FRAMES[11:30], FRAMES[30:]]
    pieces = [encode(part, FPS) for part in parts]
    content, begin = joined(pieces), 0
    for part, piece in zip(parts, pieces, strict=True):
        video = cut_of(tmp_path, content, begin, len(part))
        assert video.how == "copied"
        assert_is(video, content, begin, len(part))
        np.testing.assert_array_equal(decode(video.read()), decode(piece))
        begin += len(part)


def test_times_that_do_not_fit(tmp_path):
    content = encode(FRAMES, FPS)
    with pytest.raises(DataError, match=r"row 0 of 3 is of 1\.0100 s, .* frame of 1\.0"):
        cut_of(tmp_path, content, 5.05, 3)
    assert cut_of(tmp_path, content, 5.05, 3, tolerance=0.02).wanted.size == 3
    with pytest.raises(DataError, match=r"row 2 of 4 .*; the last one of 7\.8000 s"):
        cut_of(tmp_path, content, 38, 4)
    with pytest.raises(DataError, match="row 0 of 3"):
        cut_of(tmp_path, content, -1, 3)
    with pytest.raises(DataError, match="rows 0 and 1 are not of neighbouring frames"):
        cut(LocalStorage(tmp_path), "a.mp4", np.array([1.0, 1.0]), tolerance=1e-4, fps=FPS)


def moved(content, kind, change):
    """The file with a box of another name, so that nobody finds it."""
    assert content.count(kind) == 1
    return content.replace(kind, change)


BAD = {
    "not an mp4": lambda content: b"hello" * 100,
    "no table of its frames": lambda content: moved(content, b"moov", b"free"),
    "holds no video": lambda content: moved(content, b"\0\0\0\0vide", b"\0\0\0\0soun"),
    "its boxes make no sense": lambda content: moved(content, b"stsz", b"free"),
    "cut off": lambda content: content[:-50],
    "times of 39 frames": lambda content: content.replace(
        b"stts" + struct.pack(">3I", 0, 1, 40), b"stts" + struct.pack(">3I", 0, 1, 39)
    ),
}


@pytest.mark.parametrize("reason", BAD)
def test_files_that_are_no_plain_mp4(tmp_path, reason):
    with pytest.raises(DataError, match=f"^a.mp4: {reason}"):
        cut_of(tmp_path, BAD[reason](encode(FRAMES, FPS)), 0, 5)


def test_fragments_and_other_containers_are_told(tmp_path):
    with pytest.raises(DataError, match="not an mp4"):
        cut_of(tmp_path, encoded("matroska"), 0, 5)
    content = encoded(movflags="frag_keyframe+empty_moov")
    with pytest.raises(DataError, match="holds no frame, or no plain table"):
        cut_of(tmp_path, content, 0, 5)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(DataError, match="^gone.mp4: no such file"):
        cut(LocalStorage(tmp_path), "gone.mp4", np.zeros(1), tolerance=1e-4, fps=FPS)
