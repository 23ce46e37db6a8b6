"""The run folder: what lies where, who may write to it, which recipe it belongs to.

OUTPUT/PROJECT/GROUP/NAME/
    recipe.toml            as resolved
    contract.json          what the actions' numbers mean
    tokenizer.safetensors  the embedded tokenizer, when the recipe uses it
    metrics.jsonl          one line per `log_every` steps
    validation.jsonl       one line per validation;  validation/  its pictures (validate.py)
    bad_batch.json         only after a loss that was not finite
    checkpoints/           checkpoint.py
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cosmos_wds.config import read_table
from cosmos_wds.data.lock import holding
from cosmos_wds.errors import CheckpointError, ConfigError
from cosmos_wds.model.tokenizers import EMBEDDED
from cosmos_wds.recipe import Recipe, recipe_from_table

RECIPE, CONTRACT, TOKENIZER = "recipe.toml", "contract.json", EMBEDDED
METRICS, BAD_BATCH, CHECKPOINTS = "metrics.jsonl", "bad_batch.json", "checkpoints"
VALIDATION, PICTURES = "validation.jsonl", "validation"

FREE = {
    *("project", "group", "name", "output"),
    *("data.shards", "data.workers", "data.worker_kind", "data.cache", "data.cache_gb"),
    *("train.accumulate", "train.parallel", "train.replicate", "train.device", "train.compile"),
    *("train.checkpointing", "train.offload", "train.ema_device"),
    *("train.save_every", "train.keep", "train.log_every"),
}
"""Keys that a run may change on its way: where things lie, on which machine, how much is said.
The shards are held to their digest instead."""
FREE_SECTIONS = ("infer.", "eval.", "watch.")
"""They play no part in what training makes."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for one training at a time; a killed process gives it up by itself.

    Raises CheckpointError when another process holds it or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            holder = stack.enter_context(holding(folder / ".lock"))
        except OSError as error:
            raise CheckpointError(
                f"{folder}: the run's folder cannot be written: {error.strerror}; choose another "
                "`output` in the recipe, or mend its rights"
            ) from None
        if holder is not None:
            raise CheckpointError(
                f"{folder}: another training is writing here (process {holder or '?'}); wait for "
                "it, stop it, or give this run another `name`"
            )
        yield


def flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """{"train": {"steps": 1}} -> {"train.steps": 1}."""
    pairs: dict[str, Any] = {}
    for key, value in table.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        pairs.update({f"{key}.{k}": v for k, v in inner.items()} if inner else {key: value})
    return pairs


def read_recipe(folder: Path) -> Recipe:
    """The recipe saved with a run or with weights. Raises CheckpointError when it is missing."""
    path = folder / RECIPE
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing, so the model's size is unknown; weights need the recipe.toml that "
            "training wrote beside them"
        )
    try:
        return recipe_from_table(read_table(path), origin=str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to continue a run with other settings. Raises ConfigError naming the keys."""
    saved = flat(read_recipe(folder).model_dump(mode="json"))
    asked = flat(recipe.model_dump(mode="json"))
    different = [
        f"{key} = {asked.get(key)!r}, but the run was started with {saved.get(key)!r}"
        for key in sorted({*saved, *asked} - FREE)
        if not key.startswith(FREE_SECTIONS) and saved.get(key) != asked.get(key)
    ]
    if different:
        lines = "\n  ".join(different)
        raise ConfigError(
            f"{folder}: holds a run of another recipe; give the new one another `name`, or delete "
            f"the folder\n  {lines}"
        )
