"""A guardrail of the user's own over what a model renders: `[infer] guardrail = "module:function"`.

    def blur_faces(frames: np.ndarray) -> np.ndarray: ...

The function gets the frames of one rollout, (N+1, H, W, 3) uint8, and returns frames of the same
shape and type, or raises `Blocked("reason")`: then nothing is shown or written. `rollout` itself
calls it, so that no command's pictures pass it by. Whatever else it raises ends the command too.

NVIDIA's model licence asks that whoever removes its guardrail puts a similar one in its place, and
cosmos-wds contains none.
"""

import importlib
import os
import sys
from collections.abc import Callable

import numpy as np

from cosmos_wds.console import warn
from cosmos_wds.errors import ConfigError, UserError
from cosmos_wds.recipe import Recipe

Guardrail = Callable[[np.ndarray], np.ndarray]


class Blocked(UserError):
    """A guardrail refuses a rollout; the message says why."""


def load_guardrail(name: str) -> Guardrail | None:
    """Import `module:function`; None for an empty name. The working folder is looked in as well.

    Raises ConfigError when there is no such module or function.
    """
    if not name:
        return None
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ConfigError(f"guardrail {name!r}: write it as module:function")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(
            f"guardrail {name!r}: {module} cannot be imported: {error}; start in the folder that "
            "holds it, or install it"
        ) from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise ConfigError(f"guardrail {name!r}: {module} has no function {function}")
    checked: Guardrail = found
    return checked


def guarded(name: str, videos: np.ndarray) -> np.ndarray:
    """Rollouts (R, N+1, H, W, 3) uint8 as a guardrail lets them through, one by one.

    Raises Blocked when it refuses one, ConfigError when it returns something else than frames.
    """
    guardrail = load_guardrail(name)
    if guardrail is None:
        return videos
    passed = []
    for video in videos:
        shown = np.asarray(guardrail(video.copy()))
        if shown.shape != video.shape or shown.dtype != np.uint8:
            raise ConfigError(
                f"guardrail {name!r}: returned {shown.dtype} {shown.shape} for frames uint8 "
                f"{video.shape}; return frames of the same shape, or raise Blocked"
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
