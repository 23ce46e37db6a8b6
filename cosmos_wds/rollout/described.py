"""What a model is and how it renders, from what lies beside its weights: before they are read."""

from collections.abc import Sequence
from typing import Any

from cosmos_wds.config import apply_overrides
from cosmos_wds.data.actions import ActionContract
from cosmos_wds.diffusion.guardrail import load_guardrail
from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import Recipe, recipe_from_table, with_infer
from cosmos_wds.rollout.ready import contract_of
from cosmos_wds.train.folder import read_recipe
from cosmos_wds.train.run import find_weights, load_run

MAY_CHANGE = ("infer.", "data.", "eval.")
"""Sections of a recipe that belong to a command rather than to the weights."""


def describe(checkpoint: str) -> tuple[Recipe, ActionContract]:
    """The recipe and contract that lie beside weights, without reading the weights themselves.

    Raises CheckpointError when there are none.
    """
    place = find_weights(checkpoint)
    contract, recipe = place.contract, read_recipe(place.folder) if place.folder else None
    if recipe is None or contract is None or recipe.model.actions == "none":
        run = load_run(checkpoint)  # says what is missing, unless the model takes no actions
        return run.recipe, contract_of(run)
    return recipe, contract


def adjusted(
    recipe: Recipe,
    settings: Sequence[str] = (),
    *,
    shards: str | None = None,
    guardrail: str | None = None,
    **infer: Any,
) -> Recipe:
    """A recipe as a command's options change it.

    settings   `section.key=value` of [infer], [data] and [eval]
    shards     a set in place of the recipe's
    infer      keys of [infer]; None leaves them

    Raises ConfigError for a section that belongs to the weights, and for what cannot be.
    """
    for item in settings:
        if not item.strip().startswith(MAY_CHANGE):
            raise ConfigError(
                f"--set {item}: only [infer], [data] and [eval] can be changed here; the rest of "
                "the recipe belongs to the weights"
            )
    if settings:
        table = apply_overrides(recipe.model_dump(mode="json", exclude_none=True), settings)
        recipe = recipe_from_table(table, origin="--set")
    if shards is not None:
        data = recipe.data.model_copy(update={"shards": shards, "weights": ()})
        recipe = recipe.model_copy(update={"data": data})
    recipe = with_infer(recipe, **{key: v for key, v in infer.items() if v is not None})
    return with_guardrail(recipe, guardrail)


def with_guardrail(recipe: Recipe, name: str | None) -> Recipe:
    """The recipe with another guardrail, if one is given.

    Raises ConfigError when the guardrail cannot be imported.
    """
    if name == "":  # as from an unset variable of the shell; it must not remove the recipe's own
        raise ConfigError("--guardrail '': empty; leave it out for the recipe's own")
    if name is not None:
        changed = recipe.infer.model_copy(update={"guardrail": name})
        recipe = recipe.model_copy(update={"infer": changed})
    load_guardrail(recipe.infer.guardrail)
    return recipe
