"""What one tab drives: a world, and the record of what it was told and showed since it began.

H rows and W columns at the model's size, A numbers an action.
"""

import io

import numpy as np
from PIL import Image

from cosmos_wds.data.video import encode
from cosmos_wds.errors import DataError
from cosmos_wds.play.playground import Playground
from cosmos_wds.rollout.action_log import ActionLog, log_text, png
from cosmos_wds.rollout.session import Session

MOST_STEPS = 1024
"""Of a record; its frames are kept, as PNG, until the world begins anew."""


class Drive:
    """A world of one tab. Every call computes: they belong on the worker's thread."""

    def __init__(self, ground: Playground) -> None:
        self._ground = ground
        self._session: Session | None = None
        self._seed = 0
        self._first = np.empty((0, 0, 3), np.uint8)
        self._frames: list[bytes] = []
        self._actions: list[np.ndarray] = []

    @property
    def steps(self) -> int:
        """How many frames ago it began."""
        return len(self._actions)

    def begin(self, start: int, seed: int) -> bytes:
        """Begin anew; returns the first frame as PNG. Raises UserError; the world is then kept."""
        first = self._ground.starts[start].picture
        session = Session(self._ground.run, first[None], seed=[seed], steps=self._ground.steps)
        self._session, self._seed, self._first = session, seed, first
        self._frames, self._actions = [png(session.frames[0])], []
        return self._frames[0]

    def step(self, action: np.ndarray) -> bytes:
        """Advance by one frame under an action (A,), physical units; returns it as PNG.

        Raises DataError before the first `begin` and when the record is full, Blocked; the world
        stays where it is.
        """
        if self._session is None:
            raise DataError("begin first: choose a picture to start from")
        if self.steps >= MOST_STEPS:
            raise DataError(f"{MOST_STEPS} steps are recorded, and no more fit: begin anew")
        frame = self._session.step(action[None])[0]
        self._frames.append(png(frame))
        self._actions.append(action)
        return self._frames[-1]

    def video(self) -> bytes:
        """All frames since it began as an mp4. Raises DataError when there are none."""
        self._check_begun()
        pictures = [np.array(Image.open(io.BytesIO(frame))) for frame in self._frames]
        return encode(np.stack(pictures), self._ground.fps, plays_at_once=True)

    def log(self) -> bytes:
        """What gives these frames again, as `infer --replay` reads it. Raises DataError."""
        self._check_begun()
        ground = self._ground
        return log_text(
            ActionLog(
                checkpoint=ground.checkpoint,
                weights=ground.weights,
                contract=ground.contract.digest,
                seed=self._seed,
                steps=ground.steps,
                first=self._first,
                actions=np.reshape(self._actions, (self.steps, len(ground.contract.names))),
            )
        ).encode()

    def _check_begun(self) -> None:
        if not self._actions:
            raise DataError("nothing to save yet: drive first")
