"""A network's facts as tables: the body of `cosmos-wds inspect model`."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from rich.table import Table

from cosmos_wds.config import find_toml
from cosmos_wds.errors import ConfigError
from cosmos_wds.model.describe import TEXT_TOKENS, Facts, describe
from cosmos_wds.recipe import load_recipe
from cosmos_wds.sizes import ModelSettings, model_settings, size_names

ACTION_DIMS = 7
"""Numbers of an action: x y z, roll pitch yaw, gripper."""
USUAL = (2, 32, 40)
"""Latent of two frames of 256x320, as Bridge is trained."""


class Subject(NamedTuple):
    """A network and the latent (frames, height, width) of one sample."""

    settings: ModelSettings
    latent: tuple[int, int, int]


def find_subject(name: str, preset: Literal["ours", "reference"]) -> Subject:
    """The network that a size or a recipe names.

    Raises ConfigError when it is neither, or when a preset is asked of a recipe.
    """
    sizes = size_names()
    if name in sizes:
        settings = model_settings(name, preset)
        # A small network's tables may be smaller than the usual window.
        largest = (settings.max_frames, 2 * settings.max_height, 2 * settings.max_width)
        frames, height, width = map(min, USUAL, largest)
        return Subject(settings, (frames, height, width))
    try:
        find_toml(name, "recipes")
    except ConfigError as error:
        raise ConfigError(f"{error}; sizes: {', '.join(sizes)}") from None
    if preset != "ours":
        raise ConfigError(f"{name}: a recipe says itself how its network is built; leave --preset")
    recipe = load_recipe(name)
    return Subject(recipe.model, recipe.latent_size)


def facts_table(name: str, preset: Literal["ours", "reference"] = "ours") -> Iterator[Table | str]:
    """What to print of a network: its parameters, then what one sample costs."""
    settings, (frames, height, width) = find_subject(name, preset)
    facts = describe(settings, action_dims=ACTION_DIMS, frames=frames, height=height, width=width)
    yield _parameters(name, facts)
    cost = facts.cost
    yield (
        f"one sample: latent {frames}x{height}x{width}, {cost.tokens} tokens; forward "
        f"{_operations(cost.flops)}"
    )
    if settings.text_width:
        saved = 1 - cost.flops / cost.flops_with_text
        yield (
            f"with {TEXT_TOKENS} text tokens {_operations(cost.flops_with_text)}: leaving out "
            f"text that is zero saves {saved:.1%} of the operations and "
            f"{1 - facts.on_device / facts.total:.1%} of the parameters"
        )


def _operations(count: int) -> str:
    return f"{count / 1e12:.4g} TFLOP" if count >= 1e12 else f"{count / 1e9:.4g} GFLOP"


def _parameters(name: str, facts: Facts) -> Table:
    table = Table(title=name, title_justify="left")
    table.add_column("parameters of")
    for heading in ("number", "share", "bfloat16"):
        table.add_column(heading, justify="right")

    def row(label: str, count: int) -> tuple[str, str, str, str]:
        return label, f"{count:,}", f"{count / facts.total:.1%}", f"{2 * count / 1e9:.3g} GB"

    for label, count in facts.groups.items():
        table.add_row(*row(label, count))
    table.add_section()
    table.add_row(*row("in total", facts.total))
    table.add_row(*row("on the device (without text)", facts.on_device))
    return table
