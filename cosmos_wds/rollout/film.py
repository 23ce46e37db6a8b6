"""Frames made visible: videos side by side, enlarged, as mp4 files; single frames as PNGs."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cosmos_wds.data.video import write_video
from cosmos_wds.errors import DataError
from cosmos_wds.rollout.cases import cases, typical
from cosmos_wds.rollout.evaluation import TRUE, Evaluation
from cosmos_wds.rollout.metrics import shown_steps

GAP = 4  # pixels between pictures that stand side by side
GREY = 128
VIDEO_WIDTH, STRIP_WIDTH = 256, 160  # about how wide one picture of a film or strip gets
AMPLIFIED = 2  # how many times larger than it is a film shows the difference
COLUMNS = (
    "recording",
    "rollout",
    f"difference × {AMPLIFIED}",
    "rollout, another episode's actions",
)
"""What a film shows, from left to right."""

CARD, INK, FAINT = "#14171b", "#e4e8ec", "#9aa5b1"
"""A poster's own background and letters: it stands on light pages and on dark ones."""
MARGIN, LABELS, CELL, SPACE = 32, 214, 184, 8
"""Pixels of a poster: around it, for the words on its left, a picture's width, between pictures."""
ROUND = 20  # radius of a poster's corners
POSTER_ROWS = (
    ("recording", "what happened"),
    ("world model", "same actions"),
    ("world model", "wrong actions"),
)
"""What stands left of a poster's rows: the truth, the rollout, the rollout under wrong actions."""


def beside(*videos: np.ndarray, gap: int = GAP) -> np.ndarray:
    """Videos (T, H, W, 3) of one height, from left to right, with a grey line between them."""
    line = np.full((*videos[0].shape[:2], gap, 3), GREY, np.uint8)
    columns = [part for video in videos for part in (line, video)][1:]
    return np.concatenate(columns, axis=2)


def enlarged(frames: np.ndarray, factor: int) -> np.ndarray:
    """Frames (T, H, W, 3) at `factor` times their size, bicubic."""
    if factor == 1:
        return frames
    height, width = frames.shape[1:3]
    size = (width * factor, height * factor)
    return np.stack([np.array(Image.fromarray(f).resize(size, Image.BICUBIC)) for f in frames])


def films(evaluation: Evaluation, episode: int) -> tuple[np.ndarray, ...]:
    """The four videos of an episode, in the order of COLUMNS."""
    truth, true = evaluation.episodes.frames[episode], evaluation.rollouts[TRUE][episode]
    return truth, true, difference(true, truth), evaluation.rollouts["shuffled"][episode]


def difference(frames: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How far frames are from the truth, channel by channel: black where equal; AMPLIFIED times."""
    apart = np.abs(frames.astype(np.int16) - truth)
    return (AMPLIFIED * apart).clip(0, 255).astype(np.uint8)


def write_films(folder: Path, evaluation: Evaluation, *, fps: float, count: int = 6) -> list[Path]:
    """Write `count` episodes, those of cases.py in their order, as `episode_KEY.mp4`.

    Each shows COLUMNS side by side. Raises DataError when the disk refuses.
    """
    paths = []
    for case in cases(evaluation, count):
        videos = films(evaluation, case.episode)
        factor = max(1, round(VIDEO_WIDTH / videos[0].shape[2]))
        large = beside(*(enlarged(video, factor) for video in videos), gap=GAP * factor // 2)
        paths.append(folder / f"episode_{evaluation.episodes.keys[case.episode]}.mp4")
        write_mp4(paths[-1], large, fps)
    return paths


def write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    """`write_video`, with what the disk refuses told as a DataError."""
    import av

    try:
        write_video(path, frames, fps, plays_at_once=True)
    except (OSError, av.error.FFmpegError) as error:
        raise DataError(f"{path}: cannot be written: {error}") from None


def strip(frames: np.ndarray, steps: Sequence[int]) -> bytes:
    """The frames of some steps from left to right, as a PNG."""
    chosen = frames[list(steps)]
    height, width = chosen.shape[1:3]
    if width > STRIP_WIDTH:
        size = (STRIP_WIDTH, round(height * STRIP_WIDTH / width))
        chosen = np.stack([np.array(Image.fromarray(f).resize(size)) for f in chosen])
    return png(Image.fromarray(np.concatenate(chosen, axis=1)))


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def poster(
    evaluation: Evaluation,
    *,
    episodes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> bytes:
    """A PNG of rollouts: truth above, rollout below, another episode's actions beneath.

    episodes   their places in the evaluation, one below the other; None: the typical one
    steps      frames from left to right, 0 being the given one; None: those of the tables

    The corners are transparent.
    """
    last = evaluation.episodes.frames.shape[1] - 1
    steps = [0, *shown_steps(last)] if steps is None else list(steps)
    chosen = [typical(evaluation)] if episodes is None else list(episodes)
    rows = [
        videos[episode][steps]
        for episode in chosen
        for videos in (
            evaluation.episodes.frames,
            evaluation.rollouts[TRUE],
            evaluation.rollouts["shuffled"],
        )
    ]
    height, width = rows[0].shape[1:3]
    cell = (CELL, round(CELL * height / width))
    size = (
        2 * MARGIN + LABELS + len(steps) * (CELL + SPACE) - SPACE,
        2 * MARGIN + 36 + len(rows) * (cell[1] + SPACE) - SPACE + (len(chosen) - 1) * MARGIN,
    )
    card = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(card)
    draw.rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), ROUND, fill=CARD)
    large, small = (ImageFont.load_default(size=points) for points in (25, 20))
    for column, step in enumerate(steps):
        middle = MARGIN + LABELS + column * (CELL + SPACE) + CELL // 2
        word = "given frame" if step == 0 else f"step {step}"
        draw.text((middle, MARGIN), word, FAINT, small, anchor="ma")
    for row, frames in enumerate(rows):
        top = MARGIN + 36 + row * (cell[1] + SPACE) + row // 3 * MARGIN
        head, below = POSTER_ROWS[row % 3]
        draw.text((MARGIN, top + cell[1] // 2 - 2), head, INK, large, anchor="ls")
        draw.text((MARGIN, top + cell[1] // 2 + 8), below, FAINT, small, anchor="la")
        for column, frame in enumerate(frames):
            picture = Image.fromarray(frame).resize(cell, Image.BICUBIC)
            card.paste(picture, (MARGIN + LABELS + column * (CELL + SPACE), top))
    return png(card)
