"""A guardrail of the user's own over what a model renders: `[infer] guardrail = "module:function"`.

    def blur_faces(frames: np.ndarray) -> np.ndarray: ...

The function gets the frames of one rollout, (N+1, H, W, 3) uint8, and returns frames of the same
shape and type, or raises `Blocked("reason")`: then nothing is shown or written. So it is with
whatever else it raises, and with anything else that it returns.

`rollout.rollout` itself calls it, and so does validation while training: the only places where
generated latents become pictures. So every command's pictures pass through it, at the model's size
and before they are enlarged, put beside a recording, measured or written.

NVIDIA's model licence asks that whoever removes its guardrail puts a similar one in its place, and
cosmos-wds contains none.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from cosmos_wds.config import first_line, import_function
from cosmos_wds.console import warn
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.recipe import Recipe
from cosmos_wds.recipe_infer import MODULE_FUNCTION, WRITTEN_SO

Guardrail = Callable[[np.ndarray], Any]


class Blocked(UserError):
    """A guardrail refuses a rollout; the message says why."""


def load_guardrail(name: str) -> Guardrail | None:
    """Import `module:function`; None for an empty name.

    The working folder is looked in first, but only while the module is imported: what the function
    itself imports later must be installed. Raises ConfigError when there is no such function.
    """
    if not name:
        return None
    if not MODULE_FUNCTION.fullmatch(name):
        raise ConfigError(f"guardrail {name!r}: {WRITTEN_SO}")
    return import_function(name, "guardrail")


def guarded(name: str, videos: np.ndarray) -> np.ndarray:
    """Rollouts (R, N+1, H, W, 3) uint8 as a guardrail lets them through, one by one.

    Raises Blocked when it refuses one, ConfigError when it returns something else than frames, and
    RuntimeError, with its own error as the cause, when it fails.
    """
    guardrail = load_guardrail(name)
    if guardrail is None:
        return videos
    passed = []
    for number, video in enumerate(videos):
        try:
            shown = guardrail(video.copy())
        except Blocked as refusal:
            raise Blocked(
                f"guardrail {name!r} refuses rollout {number}, nothing is shown: "
                f"{first_line(refusal) or 'it gives no reason'}"
            ) from None
        except Exception as error:
            raise RuntimeError(
                f"guardrail {name!r} failed on rollout {number}, nothing is shown: the error above "
                "is its own"
            ) from error
        is_array = isinstance(shown, np.ndarray)
        if not is_array or shown.shape != video.shape or shown.dtype != np.uint8:
            what = f"{shown.dtype} {shown.shape}" if is_array else f"a {type(shown).__name__}"
            raise ConfigError(
                f"guardrail {name!r}: returned {what} for a uint8 array {video.shape}; return "
                "frames of the same shape and type, or raise Blocked"
            )
        passed.append(shown)
    return np.stack(passed)


def remind(recipe: Recipe) -> None:
    """Say that a model of NVIDIA's weights renders without a guardrail, where it does."""
    if recipe.model.is_nvidia and not recipe.infer.guardrail:
        warn(
            "this model descends from NVIDIA's weights and renders without a guardrail; their "
            "licence makes one your duty: --guardrail MODULE:FUNCTION (README, NVIDIA's weights)"
        )
