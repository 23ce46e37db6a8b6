"""One recording -> the members of its sample, and the facts by which the set is judged."""

from dataclasses import dataclass, replace

import numpy as np

from cosmos_wds.data.actions import ActionContract
from cosmos_wds.data.episode import Episode, Source
from cosmos_wds.data.looks import Look, Rejected
from cosmos_wds.data.shards import episode_members
from cosmos_wds.data.video import VideoFacts, decode, encode, examine, probe, resize
from cosmos_wds.errors import DataError
from cosmos_wds.pipeline import VideoSettings


@dataclass(frozen=True)
class Facts:
    """What is noted of an episode besides its row in the index, camera by camera."""

    key: str
    frames: int
    """As many as there are states; videos may hold more."""
    video_frames: tuple[int, ...]
    video_fps: tuple[float, ...]
    source_fps: float
    bytes: int
    """Of its recordings: what describes it is not counted."""
    psnr: float | None = None
    """Of camera 0 after encoding it again, in dB, where that was measured."""


@dataclass(frozen=True)
class Sample:
    """An episode as it goes into a tar."""

    members: dict[str, bytes]
    actions: np.ndarray
    """(T-1, A) float32, physical units."""
    facts: Facts


def make_sample(
    source: Source,
    contract: ActionContract,
    settings: VideoSettings,
    look: Look,
    key: str,
    *,
    measured: bool = False,
) -> Sample | Rejected:
    """Read one episode whole, and look at its videos: are they what the states need?

    `measured`: compare camera 0 with what it was before it was encoded again, if it is.
    """
    try:
        episode = source.read(look.recording)
        actions = contract.episode_actions(episode)
        videos = {camera: video.read() for camera, video in episode.videos.items()}
        size = sum(map(len, videos.values()))
        facts = {c: _examined(episode, c, videos[c], settings) for c in videos}
        psnr = None
        if settings.encodes:
            for camera, video in videos.items():
                fps = facts[camera].fps or episode.fps or contract.fps
                again = _encoded(video, fps, settings, name=episode.videos[camera].name)
                if measured and camera == min(videos):
                    psnr = again.psnr()
                videos[camera] = again.content
                shape = again.frames.shape
                facts[camera] = replace(facts[camera], height=shape[1], width=shape[2])
    except DataError as error:
        return Rejected.of(look, error)
    noted = Facts(
        key,
        len(episode.state),
        tuple(fact.frames for fact in facts.values()),
        tuple(fact.fps for fact in facts.values()),
        episode.fps,
        size,
        psnr,
    )
    first = facts[min(facts)] if facts else None
    members = episode_members(episode, look.recording, actions, videos, first, contract.fps)
    return Sample(members, actions, noted)


def _examined(episode: Episode, camera: int, content: bytes, settings: VideoSettings) -> VideoFacts:
    """Facts of a video that holds a frame for every state; more are unused, as in the reference."""
    name = episode.videos[camera].name
    look = probe if settings.check == "decode" else examine
    facts = look(content, name=name)
    if facts.frames < len(episode.state):
        raise DataError(f"{name}: {facts.frames} frames for {len(episode.state)} states")
    return facts


@dataclass(frozen=True)
class _Encoded:
    frames: np.ndarray
    """(T, H, W, 3) uint8, what was encoded."""
    content: bytes

    def psnr(self) -> float:
        """Of what a reader will see against what was encoded, over all frames, in dB."""
        seen = decode(self.content)
        error = np.mean((seen.astype(np.float32) - self.frames) ** 2, dtype=np.float64)
        return float(round(10 * np.log10(255**2 / max(error, 1e-9)), 2))


def _encoded(content: bytes, fps: float, settings: VideoSettings, *, name: str) -> _Encoded:
    frames = decode(content, name=name)
    if settings.height:
        frames = resize(frames, settings.height, settings.width)
    options = {"crf": settings.crf, "gop": settings.gop, "preset": settings.preset}
    made = encode(frames, fps, tune=settings.tune, name=name, **options)
    return _Encoded(frames, made)
