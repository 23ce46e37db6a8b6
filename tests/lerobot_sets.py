"""Tiny LeRobot data sets of versions 2.1 and 3.0, written with pyarrow as LeRobot lays them out."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cosmos_wds.data.video import encode
from tests.conftest import moving_frames, tiny_states

CAMERA = "observation.images.cam"
POSE = ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
FPS = 5
PATHS = {
    "v2.1": (
        "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    ),
    "v3.0": (
        "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    ),
}


@dataclass(frozen=True)
class Made:
    """What was written of an episode; one action a frame, the last leading nowhere."""

    state: np.ndarray
    action: np.ndarray
    frames: dict[str, np.ndarray]
    task: str


def make(lengths, cameras=(CAMERA,), *, width=7, height=64, columns=64):
    """Episodes of these lengths."""
    made = []
    for number, length in enumerate(lengths):
        state = np.hstack([tiny_states(length, number)] * -(-width // 7))[:, :width]
        state = state.astype(np.float32)
        frames = {
            camera: moving_frames(length, height, columns, 10 * number + place)
            for place, camera in enumerate(cameras)
        }
        made.append(Made(state, state[:, ::-1] * np.float32(0.5), frames, f"task {number % 2}"))
    return made


def write_set(root, version, made, *, names=POSE, per_video=2, one_piece=False, coded=encode):
    """Write a data set; v3.0 puts `per_video` episodes into an mp4, `one_piece` in one encoding."""
    root = Path(root)
    cameras = list(made[0].frames)
    shape = made[0].frames[cameras[0]].shape[1:]
    numbers = {"dtype": "float32", "shape": [made[0].state.shape[1]], "names": names}
    info = {
        "codebase_version": version,
        "robot_type": "test",
        "total_episodes": len(made),
        "total_frames": sum(len(one.state) for one in made),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(made)}"},
        "data_path": PATHS[version][0],
        "video_path": PATHS[version][1],
        "features": {
            "observation.state": numbers,
            "action": numbers,
            **{camera: {"dtype": "video", "shape": list(shape)} for camera in cameras},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
        },
    }
    _file(root / "meta/info.json").write_text(json.dumps(info))
    if version == "v2.1":
        _write_single(root, info, made, coded)
    else:
        _write_shared(root, info, made, per_video, one_piece, coded)
    return root


def _write_single(root, info, made, coded):
    lines = []
    for number, one in enumerate(made):
        words = {"episode_chunk": 0, "episode_index": number}
        pq.write_table(_rows([(number, one)]), _file(root / info["data_path"].format(**words)))
        for camera, frames in one.frames.items():
            path = root / info["video_path"].format(video_key=camera, **words)
            _file(path).write_bytes(coded(frames, FPS))
        lines.append({"episode_index": number, "tasks": [one.task], "length": len(one.state)})
    _file(root / "meta/episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")


def _write_shared(root, info, made, per_video, one_piece, coded):
    rows = [
        {
            "episode_index": number,
            "tasks": [one.task],
            "length": len(one.state),
            "data/chunk_index": 0,
            "data/file_index": 0,
            "stats/action/mean": [0.0],
        }
        for number, one in enumerate(made)
    ]
    path = root / info["data_path"].format(chunk_index=0, file_index=0)
    pq.write_table(_rows(list(enumerate(made))), _file(path))
    for camera in made[0].frames:
        for file, first in enumerate(range(0, len(made), per_video)):
            parts = [one.frames[camera] for one in made[first : first + per_video]]
            begin = 0
            for row, part in zip(rows[first:], parts, strict=False):
                row[f"videos/{camera}/chunk_index"] = 0
                row[f"videos/{camera}/file_index"] = file
                row[f"videos/{camera}/from_timestamp"] = begin / FPS
                begin += len(part)
                row[f"videos/{camera}/to_timestamp"] = begin / FPS
            whole = coded(np.concatenate(parts), FPS) if one_piece else None
            content = whole or joined([coded(part, FPS) for part in parts])
            words = {"video_key": camera, "chunk_index": 0, "file_index": file}
            _file(root / info["video_path"].format(**words)).write_bytes(content)
    pq.write_table(
        pa.Table.from_pylist(rows), _file(root / "meta/episodes/chunk-000/file-000.parquet")
    )


def _rows(numbered):
    """The table of some episodes' frames."""
    parts = []
    for number, one in numbered:
        length, width = one.state.shape
        lists = {
            name: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
            for name, values in (("observation.state", one.state), ("action", one.action))
        }
        times = pa.array((np.arange(length) / FPS).astype(np.float32))
        index = pa.array([number] * length)
        parts.append(pa.table({**lists, "timestamp": times, "episode_index": index}))
    return pa.concat_tables(parts)


def change_table(path, change):
    """Rewrite a parquet file by what `change` makes of its rows."""
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist(change(rows) or rows), path)


def change_info(root, **changes):
    path = Path(root) / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def joined(pieces):
    """Separately encoded mp4s in one, their packets copied, as `ffmpeg -f concat -c copy` does."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options={"fflags": "bitexact"}) as out:
        stream, begin = None, 0
        for piece in pieces:
            with av.open(io.BytesIO(piece)) as container:
                source = container.streams.video[0]
                stream = stream or out.add_stream_from_template(source, opaque=True)
                step = round(1 / (FPS * source.time_base))
                count = 0
                for packet in container.demux(source):
                    if packet.dts is None:
                        continue
                    packet.stream = stream
                    packet.pts += begin
                    packet.dts += begin
                    out.mux(packet)
                    count += 1
                begin += count * step
    return content.getvalue()


def encode_av1(frames, fps):
    """Frames as AV1, as LeRobot encodes them."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options={"fflags": "bitexact"}) as container:
        options = {"g": "2", "crf": "20", "preset": "8"}
        stream = container.add_stream("libsvtav1", rate=fps, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return content.getvalue()


def _file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
