"""Where the gripper is in a picture, for recordings whose camera is known: the path it takes in a
rollout, against the one it took.

Its true place is the tool's point between the fingertips (state's x, y, z), projected. It is found
in a picture by a correlation filter of several channels (Bolme et al. 2010, MOSSE; Galoogahi et al.
2013): the linear filter whose response to recordings is a peak on their true places, by ridge
regression at each frequency. An episode's filter has learnt from the other episodes' recordings
only. In the demo's 24 held-out recordings at 48 x 64 pixels it is found 0.85 pixels from its true
place on average, 2.3 at most, and is missed in 5 of 408 frames.

E episodes, N+1 frames, H x W pixels, C channels, P x Q pixels with a margin, Q' of its frequencies.
"""

from collections.abc import Mapping

import numpy as np

from cosmos_wds.rollout.episodes import HeldOut
from cosmos_wds.rollout.evaluation import GripperPath
from cosmos_wds.sources.scene_solids import Camera

LEAST = 8
"""Episodes that a finder needs."""
MARGIN = 1 / 8
"""Of the picture's height, around it: places at one edge must not be neighbours of the other's."""
SPREAD = 1 / 32
"""Standard deviation of the peak, as a share of the picture's height."""
RIDGE = 1e-2
FOUND = 8.0
"""Standard deviations by which a peak stands above the rest of its response; below it, there is no
gripper. (The peak-to-sidelobe ratio of Bolme et al.: a fainter gripper still has the same.)"""
AROUND = 2
"""Pixels around a peak whose centre of mass is its place."""


def known_camera(kind: str, height: int, width: int) -> Camera | None:
    """The camera that recordings of a kind are seen by, at a size; None when it is not known."""
    return Camera(height, width) if kind == "demo" else None


def gripper_path(episodes: HeldOut, videos: Mapping[str, np.ndarray]) -> GripperPath | None:
    """How far the gripper is from its true place, in each frame of each row of videos.

    videos   row -> (E, N+1, H, W, 3) uint8;  None where the camera is not known, or episodes are
    fewer than a finder needs
    """
    height, width = episodes.frames.shape[2:4]
    camera = known_camera(episodes.kind, height, width)
    if camera is None or episodes.states is None or len(episodes.keys) < LEAST:
        return None
    truth, _ = camera.project(episodes.states[..., :3])
    finders = learn(episodes.frames, truth)
    places = {
        row: np.stack([find(video[1:]) for find, video in zip(finders, frames, strict=True)])
        for row, frames in videos.items()
    }
    errors = {row: np.linalg.norm(found - truth[:, 1:], axis=-1) for row, found in places.items()}
    return GripperPath(errors, places, truth)


class Finder:
    """Finds the gripper in frames of one episode."""

    def __init__(self, scene: "Scene", weights: np.ndarray) -> None:
        self._scene, self._weights = scene, weights

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames (n, H, W, 3) uint8 -> places (n, 2): column and row; NaN where there is none."""
        spectrum = self._scene.spectrum(frames)
        answer = np.moveaxis((spectrum @ self._weights[..., None])[..., 0], -1, 0)
        response = np.fft.irfft2(answer, s=self._scene.size)
        inside = response[(slice(None), *self._scene.inside)]
        return np.stack([_peak(one) for one in inside])


class Scene:
    """Turns frames of one episode into the spectra of their channels."""

    def __init__(self, recording: np.ndarray) -> None:
        """recording   (N+1, H, W, 3): its median over time stands for what never moves"""
        self._still = np.median(recording, axis=0).astype(np.float32) / 255
        height, width = self._still.shape[:2]
        self._margin = round(MARGIN * height)
        self.size = (height + 2 * self._margin, width + 2 * self._margin)
        self.inside = tuple(slice(self._margin, self._margin + n) for n in (height, width))

    def spectrum(self, frames: np.ndarray) -> np.ndarray:
        """(n, H, W, 3) uint8 -> (P, Q', n, C) complex."""
        margin = (self._margin, self._margin)
        framed = np.pad(channels(frames, self._still), [(0, 0), (0, 0), margin, margin])
        return np.ascontiguousarray(np.fft.rfft2(framed).transpose(2, 3, 0, 1))

    def peaks(self, places: np.ndarray) -> np.ndarray:
        """The wanted responses to frames with the gripper at places (n, 2): spectra (P, Q', n)."""
        rows, columns = np.mgrid[: self.size[0], : self.size[1]] - self._margin
        across = (columns - places[:, 0, None, None]) ** 2
        down = (rows - places[:, 1, None, None]) ** 2
        peaks = np.exp(-(across + down) / 2 / (SPREAD * len(self._still)) ** 2)
        return np.moveaxis(np.fft.rfft2(peaks), 0, -1)


def channels(frames: np.ndarray, still: np.ndarray) -> np.ndarray:
    """What a filter looks at: (n, H, W, 3) uint8, and what never moves -> (n, C, H, W) float32.

    The difference from what never moves, with its size; two opponent colours; slopes of the grey
    picture by their four directions. Each has a mean of 0 in every picture.
    """
    x = frames.astype(np.float32) / 255
    moved, grey = x - still, x.mean(-1)
    down, right = np.gradient(grey, axis=(-2, -1))
    red, green, blue = np.moveaxis(x, -1, 0)
    parts = [*np.moveaxis(moved, -1, 0), np.abs(moved).sum(-1), red - green, green - blue]
    parts += [np.maximum(sign * slope, 0) for slope in (right, down) for sign in (1, -1)]
    found = np.stack(parts, axis=1)
    return found - found.mean(axis=(-2, -1), keepdims=True)


def learn(recordings: np.ndarray, places: np.ndarray) -> list[Finder]:
    """A finder for each episode, from all the others.

    recordings (E, N+1, H, W, 3) uint8, places (E, N+1, 2): column and row of the gripper
    """
    parts = list(zip(map(Scene, recordings), recordings, places, strict=True))
    power, wanted = _products(*parts[0])
    for part in parts[1:]:
        more = _products(*part)
        power, wanted = power + more[0], wanted + more[1]
    finders = []
    for part in parts:
        own = _products(*part)
        finders.append(Finder(part[0], _solved(power - own[0], wanted - own[1])))
    return finders


def _products(
    scene: Scene, recording: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An episode's part in the normal equations: (P, Q', C, C) and (P, Q', C), complex."""
    spectrum = scene.spectrum(recording)
    turned = spectrum.conj().swapaxes(-1, -2)
    return turned @ spectrum, (turned @ scene.peaks(places)[..., None])[..., 0]


def _solved(power: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The filter's spectrum, (P, Q', C)."""
    count = power.shape[-1]
    ridge = RIDGE * np.trace(power, axis1=-2, axis2=-1).real.mean() / count
    return np.linalg.solve(power + ridge * np.eye(count), wanted[..., None])[..., 0]


def _peak(response: np.ndarray) -> np.ndarray:
    """Column and row of a response's highest place, between pixels; NaN where it is too low."""
    row, column = np.unravel_index(response.argmax(), response.shape)
    rows, columns = (slice(max(0, at - AROUND), at + AROUND + 1) for at in (row, column))
    is_rest = np.ones(response.shape, bool)
    is_rest[rows, columns] = False
    rest = response[is_rest]
    if response[row, column] - rest.mean() < FOUND * rest.std():
        return np.full(2, np.nan)
    near = np.maximum(response[rows, columns], 0)
    places = np.mgrid[: near.shape[0], : near.shape[1]]
    down, across = (places * near).sum(axis=(1, 2)) / near.sum()
    return np.array([columns.start + across, rows.start + down])
