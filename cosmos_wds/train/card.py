"""The model card of exported weights: what they are, what made them, what their numbers mean."""

import json
from pathlib import Path

import tomli_w

from cosmos_wds import __version__
from cosmos_wds.config import read_table
from cosmos_wds.model.describe import describe
from cosmos_wds.model.show import ACTION_DIMS
from cosmos_wds.recipe import Recipe
from cosmos_wds.train.checkpoint import checkpoint_folder
from cosmos_wds.train.folder import CHECKPOINTS, METRICS, RECIPE
from cosmos_wds.train.run import Place
from cosmos_wds.train.state import read_facts

_LICENCES = {
    True: (
        "license: other\nlicense_name: nvidia-open-model-license\n"
        "license_link: https://www.nvidia.com/en-us/agreements/enterprise-software/"
        "nvidia-open-model-license/\nbase_model: nvidia/Cosmos-Predict1-7B-Video2World\n"
    ),
    False: "license: apache-2.0\n",
}

_USE = {
    "pt": "`model.pt` holds NVIDIA's names (`net.`, `logvar.`) and loads as its release does.",
    "safetensors": "The names are NVIDIA's (`net.`, `logvar.`).",
    "diffusers": (
        "`CosmosTransformer3DModel.from_pretrained` loads the network, without actions. The action "
        "embedders are in `action_embedder.safetensors`, under NVIDIA's names; "
        "`action_embedder_B_3D` is added to the first value that `time_embed` returns, and "
        "`action_embedder_B_D` to the sinusoid before its norm, per generated frame "
        '(`actions = "per_frame"`) or, with `actions = "reference"`, B_3D of the first action '
        "alone. diffusers normalises queries and keys with an epsilon of 1e-5, and 1e-6 stands "
        "here, so its outputs differ by up to about 1e-5 of their spread."
    ),
}


def model_card(recipe: Recipe, place: Place, *, form: str, dtype: str) -> str:
    """README.md for a folder of exported weights."""
    assert place.folder is not None
    is_nvidia = recipe.model.is_nvidia
    head = (
        f"---\n{_LICENCES[is_nvidia]}pipeline_tag: robotics\ntags: [world-model, cosmos-wds]\n---"
    )
    notice = "Built on NVIDIA Cosmos. " if is_nvidia else ""
    lines = [
        head,
        f"# {recipe.name}",
        notice + "A world model that renders what follows from a picture and a robot's actions, "
        f"made with cosmos-wds {__version__}.",
        f"{_USE[form]} Numbers are {dtype}. `cosmos-wds infer FOLDER` rolls out the other two "
        "forms.",
        "## What made it",
        _table(_facts(recipe, place)),
        "## Action contract",
        _contract(place),
        "## Recipe",
        f"```toml\n{tomli_w.dumps(read_table(place.folder / RECIPE)).strip()}\n```",
    ]
    if is_nvidia:
        lines.append(
            "## Licence\n\nA derivative of NVIDIA's weights, under the NVIDIA Open Model License. "
            "It asks that safety guardrails are not removed without a similar one: whoever shows "
            "or ships what this model renders provides one (`cosmos-wds infer --guardrail`)."
        )
    return "\n\n".join(lines) + "\n"


def _facts(recipe: Recipe, place: Place) -> dict[str, str]:
    window, (frames, height, width) = recipe.window, recipe.latent_size
    facts = describe(
        recipe.model, action_dims=ACTION_DIMS, frames=frames, height=height, width=width
    )
    found = {
        "parameters": f"{facts.total:,} ({facts.on_device:,} without the text path)",
        "window": f"{window.frames} frames of {window.picture_height}x{window.width}, every "
        f"{window.interval}",
        "base": recipe.model.base or "none",
        "steps": str(place.step or "unknown"),
    }
    return found | _digests(place) | _metrics(place)


def _digests(place: Place) -> dict[str, str]:
    """What the run's state says of the data and the tokenizer it was trained with."""
    if place.folder is None or place.step is None:
        return {}
    folder = checkpoint_folder(place.folder / CHECKPOINTS, place.step)
    if not folder.is_dir():
        return {}
    facts = read_facts(folder)
    return {"data (digest of its index)": str(facts["loader"].get("index", "unknown"))} | {
        f"digest of the {name}": str(digest)[:16] for name, digest in facts["digests"].items()
    }


def _metrics(place: Place) -> dict[str, str]:
    """The last line of metrics.jsonl up to the step that is exported."""
    path = Path(place.folder or ".") / METRICS
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if place.step is None or row["step"] <= place.step]
    return {"training loss": f"{rows[-1]['loss']:.4f} (step {rows[-1]['step']})"} if rows else {}


def _contract(place: Place) -> str:
    contract = place.contract
    if contract is None:
        return "None: it takes no actions."
    return _table({k: str(v) for k, v in contract.to_dict().items()})


def _table(rows: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
