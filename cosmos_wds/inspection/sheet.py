"""The contact sheet: a strip of frames for each of some episodes, on one picture."""

import io
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cosmos_wds.config import write_bytes
from cosmos_wds.data.video import decode
from cosmos_wds.inspection.reach import Sample, plain, spread

FRAMES = 8  # of each episode
THUMB = 160  # pixels that a frame is wide
LABEL = 20  # pixels that the words above a strip are high
GAP = 4
PAPER, INK = (255, 255, 255), (27, 31, 36)


def write_sheet(path: Path, samples: Iterable[Sample]) -> bool:
    """Write the sheet as a PNG; False, and nothing written, where no episode has a video."""
    strips = [_strip(sample) for sample in samples if sample.video]
    if not strips:
        return False
    height = sum(strip.height for strip in strips)
    sheet = Image.new("RGB", (max(strip.width for strip in strips), height), PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    content = io.BytesIO()
    sheet.save(content, "PNG")
    write_bytes(path, content.getvalue())
    return True


def _strip(sample: Sample) -> Image.Image:
    """One episode: key, length and text, and below them its frames from left to right."""
    frames = decode(sample.video, spread(sample.frames, FRAMES), name=sample.key)
    high = max(1, round(THUMB * frames.shape[1] / frames.shape[2]))
    size = (FRAMES * (THUMB + GAP) + GAP, LABEL + high + 2 * GAP)
    strip = Image.new("RGB", size, PAPER)
    words = f"{sample.split}  {sample.key}  {sample.frames} frames  {sample.text}"
    # The font that Pillow brings along has the letters of western Europe.
    words = plain(words).encode("latin-1", "replace").decode("latin-1")
    ImageDraw.Draw(strip).text((GAP, GAP), words, INK, ImageFont.load_default(13))
    for place, frame in enumerate(frames):
        thumb = Image.fromarray(frame).resize((THUMB, high))
        strip.paste(thumb, (GAP + place * (THUMB + GAP), LABEL + GAP))
    return strip
