"""Recipe: how shards become a model and its rollouts (train, infer, eval). No torch here."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cosmos_wds.config import (
    Settings,
    apply_overrides,
    at_least,
    find_toml,
    parse,
    read_table,
)
from cosmos_wds.recipe_eval import EvalSettings
from cosmos_wds.recipe_infer import InferSettings
from cosmos_wds.recipe_train import LoraSettings, TrainSettings, WatchSettings
from cosmos_wds.sizes import ModelSettings, size_table


class DataSettings(Settings):
    """Which shards, in which order, and where a broken sample leads."""

    shards: str | tuple[str, ...] = "data/bridge/shards"
    """Folder or URL of a shard set, or of several."""
    weights: tuple[float, ...] = ()
    """Of several sets: their shares of a batch. Without, each has as many as it has windows."""
    split: str = "train"
    """The split that training reads."""
    workers: int = 2
    """Per rank, threads no more than its cores but one; 0 decodes while training waits."""
    worker_kind: Literal["thread", "process"] = "thread"
    """Threads of the training process, or processes of their own (for codecs that hold Python's
    lock)."""
    pool: int = 4
    """Episodes of a lane that are shuffled together and kept decoded. 0 shuffles all windows of
    the epoch; for latents, which are read at random as fast as in order."""
    shard_group: int = 4
    """Shards whose episodes are shuffled together."""
    on_bad: Literal["error", "skip"] = "error"
    cache: str = "~/.cache/cosmos-wds"
    """Where parts of shards at a URL are kept; one folder serves all runs of a machine."""
    cache_gb: float = 50.0
    """What they may take on its disk; 0 keeps nothing."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, workers=0, pool=0, shard_group=1, cache_gb=0)
        sets = 1 if isinstance(self.shards, str) else len(self.shards)
        if not sets:
            yield "shards = []: name at least one set"
        if self.weights and len(self.weights) != sets:
            yield f"weights: {len(self.weights)} numbers for {sets} shard sets; give each set one"
        if any(weight <= 0 for weight in self.weights):
            yield f"weights = {list(self.weights)}: must be above 0"


class WindowSettings(Settings):
    """The piece of an episode that one training sample holds."""

    frames: int = 2
    interval: int = 1
    height: int = 256
    width: int = 320
    camera: int | tuple[int, ...] = 0
    """Which camera. Of a list, an episode shows one, another one from epoch to epoch."""
    stacked: bool = False
    """All cameras of the list at once, one below the other, each height x width."""
    resize: Literal["fast", "exact"] = "fast"
    """`exact`: to the bit as the reference resizes, in floats; `fast` is at most one level apart,
    and costs a twentieth."""

    @property
    def cameras(self) -> tuple[int, ...]:
        """The cameras that windows are seen by."""
        return (self.camera,) if isinstance(self.camera, int) else self.camera

    @property
    def picture_height(self) -> int:
        """Rows of pixels that the model sees."""
        return self.height * (len(self.cameras) if self.stacked else 1)

    def problems(self) -> Iterator[str]:
        if self.frames < 2:
            yield (
                f"frames = {self.frames}: a window holds one given frame and at least one to "
                "generate; use 2 or more"
            )
        yield from at_least(self, interval=1)
        if not self.cameras or min(self.cameras) < 0 or len({*self.cameras}) < len(self.cameras):
            yield f"camera = {self.camera!r}: a camera's number, or a list of different ones"
        for name, size in (("height", self.height), ("width", self.width)):
            if size % 8 or size < 16:
                nearest = max(16, 8 * round(size / 8))
                yield f"{name} = {size}: sizes are multiples of 8, from 16; nearest is {nearest}"


class TokenizerSettings(Settings):
    """Pixels <-> latents."""

    kind: Literal["cosmos", "diffusers", "patch"] = "cosmos"
    """`cosmos`: NVIDIA's encoder.jit, decoder.jit and mean_std.pt in the folder `path`.
    `diffusers`: the same tokenizer there as an AutoencoderKLCosmos (cosmos-wds[diffusers]).
    `patch`: the embedded one; at `path` when that is named, else taken from the base weights, else
    fitted on the shards."""
    path: str = ""
    patch: int = 4
    """Pixels per side of one latent cell (`patch` only)."""
    fit_frames: int = 512
    """Frames that the closed-form fit looks at (`patch` only)."""

    @property
    def factor(self) -> int:
        """Pixels per side of one latent cell; NVIDIA's tokenizers have 8."""
        return self.patch if self.kind == "patch" else 8

    def problems(self) -> Iterator[str]:
        yield from at_least(self, patch=1, fit_frames=1)


class DiffusionSettings(Settings):
    """EDM noise, conditioning and loss (spec.md section d)."""

    p_mean: float = 0.0
    """Mean and spread of ln(sigma) in training."""
    p_std: float = 1.0
    conditioning: Literal["given", "reference"] = "given"
    """`given`: the first frame is always given; `reference`: in 40 % of the steps (spec.md d.4)."""
    given_drop: float = 0.0
    """Share of samples whose given frame is hidden."""
    augment_mean: float = -3.0
    """The given frame's noise: scale * exp(N(mean, std))."""
    augment_std: float = 2.0
    augment_scale: float = 1.0
    loss_frames: Literal["generated", "all"] = "generated"
    """What the mean runs over; `all` counts the zeroed given frame, as the reference does."""
    action_drop: float = 0.0
    """Share of samples whose actions are hidden, for guidance on actions."""

    def problems(self) -> Iterator[str]:
        for name in ("given_drop", "action_drop"):
            if not 0 <= getattr(self, name) < 1:
                yield f"{name} = {getattr(self, name)}: a share from 0 up to, not including, 1"
        for name in ("p_std", "augment_std", "augment_scale"):
            if getattr(self, name) < 0:
                yield f"{name} = {getattr(self, name)}: must not be negative"


class Recipe(Settings):
    """One experiment: everything that training and rollouts need besides the shards."""

    project: str = "posttraining"
    group: str = "diffusion_video2world_action"
    name: str = "unnamed"
    output: str = "checkpoints"
    """Root of the run folder output/project/group/name."""
    seed: int = 0
    data: DataSettings = Field(default_factory=DataSettings)
    window: WindowSettings = Field(default_factory=WindowSettings)
    model: ModelSettings = Field(default_factory=ModelSettings)
    tokenizer: TokenizerSettings = Field(default_factory=TokenizerSettings)
    diffusion: DiffusionSettings = Field(default_factory=DiffusionSettings)
    train: TrainSettings = Field(default_factory=TrainSettings)
    lora: LoraSettings = Field(default_factory=LoraSettings)
    watch: WatchSettings = Field(default_factory=WatchSettings)
    infer: InferSettings = Field(default_factory=InferSettings)
    eval: EvalSettings = Field(default_factory=EvalSettings)

    def problems(self) -> Iterator[str]:
        for key in ("project", "group", "name"):
            value = getattr(self, key)
            if not value or "/" in value or value.startswith("."):
                yield f"{key} = {value!r}: one plain folder name"
        spatial = 2 * max(1, self.tokenizer.factor)  # of a token: 2x2 latent cells
        for key in ("height", "width"):
            size = getattr(self.window, key)
            if size % spatial:
                nearest = max(spatial, spatial * round(size / spatial))
                yield (
                    f"[window] {key} = {size}: tokenizer and network take multiples of {spatial}; "
                    f"nearest is {nearest}"
                )
        yield from self._window_beyond_tables(spatial)
        yield from self._rollouts_beyond_training()
        if self.train.batch % self.train.accumulate:
            yield (
                f"[train] batch = {self.train.batch}: not a multiple of accumulate = "
                f"{self.train.accumulate}"
            )
        if self.lora.rank and not self.model.base:
            yield f"[lora] rank = {self.lora.rank}: adapters need a base to adapt; set [model] base"
        if self.lora.rank and self.train.parallel == "fsdp":
            yield (
                f"[lora] rank = {self.lora.rank}: frozen weights are not sharded; use [train] "
                'parallel = "ddp"'
            )

    def _window_beyond_tables(self, spatial: int) -> Iterator[str]:
        """Position tables have a row for each frame, row and column of tokens, and no more."""
        if not self.model.position_tables:
            return
        window, model = self.window, self.model
        for name, size, most in (
            ("frames", window.frames, model.max_frames),
            ("height", window.picture_height, model.max_height * spatial),
            ("width", window.width, model.max_width * spatial),
        ):
            if size > most:
                yield f"[window] {name} = {size}: the model's position tables end at {most}"

    def _rollouts_beyond_training(self) -> Iterator[str]:
        """What rollouts cannot ask of this model."""
        model, infer, frames = self.model, self.infer, self.call_window.frames
        if model.position_tables and frames > max(self.window.frames, model.max_frames):
            yield (
                f"[infer] frames_per_call = {infer.frames_per_call}: with the given frame that is "
                f"{frames}, and the model's position tables end at {model.max_frames}"
            )
        if model.actions == "reference" and frames > max(self.window.frames, 2):
            yield (
                f"[infer] frames_per_call = {infer.frames_per_call}: a model with actions = "
                '"reference" looks at the first action of a call only; use 1'
            )
        if infer.guidance and (model.actions == "none" or not self.diffusion.action_drop):
            yield (
                f"[infer] guidance = {infer.guidance}: the model never saw a window without its "
                "actions; use 0, or train it with [diffusion] action_drop, such as 0.1"
            )

    @property
    def call_window(self) -> WindowSettings:
        """The window that one sampler call of a rollout fills: the given frame and those that it
        generates."""
        frames = self.infer.frames_per_call + 1 if self.infer.frames_per_call else None
        return self.window.model_copy(update={"frames": frames or self.window.frames})

    @property
    def latent_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of one window's latent."""
        window, factor = self.window, self.tokenizer.factor
        return window.frames, window.picture_height // factor, window.width // factor

    @property
    def run_folder(self) -> Path:
        """Where a run of this recipe keeps its state."""
        return Path(self.output) / self.project / self.group / self.name


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or shipped name, with `section.key=value` overrides applied.

    Raises ConfigError listing every problem at once.
    """
    path = find_toml(name, "recipes")
    return recipe_from_table(apply_overrides(read_table(path), overrides), origin=str(path))


def with_infer(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with other keys of [infer]. Raises ConfigError for what its model cannot do."""
    table = recipe.model_dump()
    return parse(Recipe, {**table, "infer": {**table["infer"], **changes}}, origin=recipe.name)


def recipe_from_table(table: dict[str, Any], *, origin: str) -> Recipe:
    """Build a recipe from a table, filling `[model]` from the size that it names."""
    model = table.get("model")
    if isinstance(model, dict) and model.get("size"):
        table = {**table, "model": {**size_table(str(model["size"]), origin), **model}}
    return parse(Recipe, table, origin=origin)
