"""Optional libraries of training: whether one is there, and its import without its chatter."""

import importlib
import logging
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any

from cosmos_wds.errors import ConfigError
from cosmos_wds.recipe import Recipe


def check_extras(recipe: Recipe) -> None:
    """Raise ConfigError when a library that the recipe's training needs is not installed."""
    settings = recipe.train
    wanted = {
        "torchao": {
            'optimizer = "adamw8bit"': settings.optimizer == "adamw8bit",
            "offload = true": settings.offload,
        },
        "peft": {f"rank = {recipe.lora.rank}": recipe.lora.rank > 0},
    }
    for package, reasons in wanted.items():
        section = "lora" if package == "peft" else "train"
        for reason in [reason for reason, is_wanted in reasons.items() if is_wanted]:
            require(package, f"[{section}] {reason}")


def require(package: str, setting: str, extra: str = "") -> None:
    """Raise ConfigError when a package that a setting needs is not installed.

    extra   that it is part of; one of its own name if left out
    Its metadata is asked for: a folder of its name where the user stands would pass for it.
    """
    try:
        distribution(package)
    except PackageNotFoundError:
        raise ConfigError(
            f"{setting} needs: pip install 'cosmos-wds[{extra or package}]'"
        ) from None


def import_extra(module: str) -> Any:
    """Import a module of a library that `check_extras` has found.

    torchao, which peft imports too, warns of each of its kernels that this machine cannot load;
    none of them is used here.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(module)
    finally:
        logging.disable(before)
