"""Pipeline: how raw recordings become shards (download, shard). No torch here."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from cosmos_wds.config import (
    Settings,
    apply_overrides,
    at_least,
    find_toml,
    parse,
    read_table,
)

SOURCE_KINDS = ("bridge", "demo", "lerobot", "webdataset")
POSE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
POSE_UNITS = ("m", "m", "m", "rad", "rad", "rad", "1")


class DownloadSettings(Settings):
    """Where the recordings come from. `demo` sources are generated, not fetched."""

    url: str = ""
    """A .tar or .tar.gz archive: an http(s) address, a file on this disk, or on Hugging Face
    hf://datasets/OWNER/NAME/FILE, there also in parts named FILE.sfpart_aa, FILE.sfpart_ab, ..."""
    mirror: str = ""
    """The same archive elsewhere, for when `url` does not answer."""
    prefer: Literal["url", "mirror"] = "url"
    evaluation: str = ""
    """An archive beside `url` and `mirror`, with what belongs to the published evaluation."""
    archive: Literal["recordings", "evaluation"] = "recordings"
    splits: tuple[str, ...] = ()
    """Take only episodes of these splits; empty takes all that the archive holds."""
    episodes: int = 0
    """Take up to so many of each split, those that come first; 0 takes all."""
    strip: str = ""
    """Folder inside the archive whose content becomes the source folder."""
    bytes: int = 0
    """Expected size of the archive; 0 when the publisher names none."""
    sha256: str = ""
    weights: tuple[str, ...] = ()
    """Hugging Face repositories of model weights that belong to this job: OWNER/NAME, or
    OWNER/NAME@REVISION to pin a commit, tag or branch."""
    weights_to: str = "checkpoints"

    def problems(self) -> Iterator[str]:
        yield from at_least(self, episodes=0)
        if self.archive == "evaluation" and not self.evaluation:
            yield "archive = 'evaluation': there is none; name it in `evaluation`"
        if self.archive == "evaluation" and (self.splits or self.episodes):
            yield "splits, episodes: the evaluation archive has no episodes to choose from"


class GenerateSettings(Settings):
    """The synthetic data set (`demo` only)."""

    seed: int = 0
    train: int = 240
    val: int = 24
    height: int = 96
    width: int = 128

    def problems(self) -> Iterator[str]:
        if self.train < 0 or self.val < 0 or self.train + self.val == 0:
            yield f"train = {self.train}, val = {self.val}: at least one episode is needed"
        for name in ("height", "width"):
            if getattr(self, name) < 32 or getattr(self, name) % 2:
                yield f"{name} = {getattr(self, name)}: an even number of pixels from 32"


class SourceSettings(Settings):
    """The recordings: a folder, or a URL that fsspec knows (s3://, gs://, hf://)."""

    kind: str = "bridge"
    """bridge, demo, lerobot or webdataset; or one of yours as MODULE:FUNCTION, which is given the
    pipeline and returns a Source."""
    path: str = "data/bridge/raw"
    splits: tuple[str, ...] = ("train", "val", "test")
    """Splits to read; one that the source does not have is passed over with a word."""

    def problems(self) -> Iterator[str]:
        if self.kind not in SOURCE_KINDS and not re.fullmatch(r"[\w.]+:\w+", self.kind):
            near = difflib.get_close_matches(self.kind, SOURCE_KINDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(SOURCE_KINDS)}"
            yield f"kind = {self.kind!r}: {hint}; or MODULE:FUNCTION"


class LerobotSettings(Settings):
    """What to take of a LeRobot data set (`lerobot` only)."""

    state: tuple[str, ...] = ("observation.state",)
    """Features that are joined to the state."""
    action: tuple[str, ...] = ("action",)
    """Features that are joined to the recorded action."""
    pose: tuple[str | int, ...] = ()
    """Which dimensions of the state are x y z roll pitch yaw gripper, by name or number; found by
    their names when left out."""
    gripper_closed: float = 0.0
    """The state's value for a closed gripper; it becomes 0."""
    gripper_open: float = 1.0
    cameras: tuple[str, ...] = ()
    """Video features, camera 0 first; all in the order of info.json when left out."""
    val_every: int = 0
    """Every so many-th episode of `train` goes to `val`, if there is no such split; 0: none."""
    tolerance: float = 1e-4
    """Seconds that a frame may be shown before or after its row's time."""

    def problems(self) -> Iterator[str]:
        if self.pose and len(self.pose) != len(POSE_NAMES):
            yield f"pose = {list(self.pose)}: seven, for {' '.join(POSE_NAMES)}"
        if self.gripper_closed == self.gripper_open:
            yield f"gripper_open = {self.gripper_open}: must differ from gripper_closed"
        if self.val_every < 0:
            yield f"val_every = {self.val_every}: must be 0 or more"
        if self.tolerance <= 0:
            yield f"tolerance = {self.tolerance}: must be above zero"


class ActionSettings(Settings):
    """The action contract (design: one signal for training and rollouts)."""

    signal: Literal["state", "command"] = "state"
    """`state`: relative pose between measured states; `command`: the recorded `action` rows."""
    accumulate: bool = False
    """Poses relative to the window's first frame instead of the previous one."""
    names: tuple[str, ...] = POSE_NAMES
    """Of the dimensions; others than a pose and a gripper only with `command`."""
    units: tuple[str, ...] = POSE_UNITS
    scale: tuple[float, ...] = (20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0)
    """What each is multiplied by before the network sees it."""
    fps: float = 5.0

    def problems(self) -> Iterator[str]:
        size = len(self.names)
        if len(self.scale) != size or any(s <= 0 for s in self.scale):
            what = f"{size} numbers above zero ({' '.join(self.names)})"
            yield f"scale = {list(self.scale)}: {what}"
        if len(self.units) != size or not size or len(set(self.names)) != size:
            yield f"names = {list(self.names)}: each once, and each with its unit in `units`"
        if self.signal == "state" and self.names != POSE_NAMES:
            yield f'names = {list(self.names)}: signal = "state" has {" ".join(POSE_NAMES)}'
        if self.fps <= 0:
            yield f"fps = {self.fps}: must be above zero"
        if self.accumulate and self.signal == "command":
            yield 'accumulate = true: needs signal = "state"'


class VideoSettings(Settings):
    """What becomes of the videos: byte for byte as they are, unless a size, gop or codec is named.

    Encoding again makes loading faster: pictures of the size that is trained on, long gops, quick
    to decode (`tune`). What it costs is measured, and said in index.json.
    """

    check: Literal["container", "decode"] = "container"
    """`container`: every piece of the file is looked at; `decode`: every frame is decoded."""
    codec: Literal["copy", "h264"] = "copy"
    height: int = 0
    """Rows of pixels; 0 keeps the size."""
    width: int = 0
    gop: int = 0
    """Longest distance between key frames; 0 lets the encoder choose (250)."""
    crf: int = 23
    """x264's quality: 0 lossless .. 51."""
    preset: str = "medium"
    tune: Literal["", "fastdecode", "film", "animation", "grain", "stillimage", "zerolatency"] = (
        "fastdecode"
    )
    """x264's; `fastdecode` does without CABAC, deblocking and weighted prediction."""

    @property
    def encodes(self) -> bool:
        """Whether videos are encoded again."""
        return self.codec != "copy" or bool(self.height or self.gop)

    def problems(self) -> Iterator[str]:
        if (self.height > 0) != (self.width > 0) or self.height % 2 or self.width % 2:
            yield f"height = {self.height}, width = {self.width}: both, and even; or neither"
        if min(self.height, self.width, self.gop) < 0 or not 0 <= self.crf <= 51:
            yield f"gop = {self.gop} (0 or more), crf = {self.crf} (0 to 51)"


class ShardSettings(Settings):
    """The shard set to write."""

    path: str = "data/bridge/shards"
    megabytes: int = 256
    """A shard closes before it would grow beyond this (at least one episode per shard)."""
    workers: int = 0
    """Processes; 0 uses every core."""

    def problems(self) -> Iterator[str]:
        if self.megabytes < 1 or self.workers < 0:
            yield f"megabytes = {self.megabytes} (1 or more), workers = {self.workers} (0 or more)"


class LatentSettings(Settings):
    """A set of latents, encoded once from the shard set (`shard --latents`)."""

    path: str = "data/bridge/latents"
    tokenizer: str = "checkpoints/Cosmos-Tokenize1-CV8x8x8-720p"
    """A folder of NVIDIA's or diffusers' files; or the embedded tokenizer of a run, of an export or
    of weights that ship with the package (cosmos-tiny)."""
    height: int = 256
    """Rows of pixels that are encoded; [window] height and width of the recipes that will train."""
    width: int = 320
    camera: int = 0
    batch: int = 8
    """Frames of an episode that are encoded together; fewer need less memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` and `cuda`: a process for each GPU; without GPUs, `auto` takes [shards] workers."""

    def problems(self) -> Iterator[str]:
        yield from at_least(self, height=1, width=1, camera=0, batch=1)
        if not self.tokenizer:
            yield "tokenizer is empty: name a folder, or cosmos-tiny"


class Pipeline(Settings):
    """One data set: where it comes from, what its actions mean, which shards it becomes."""

    name: str = "unnamed"
    download: DownloadSettings = Field(default_factory=DownloadSettings)
    generate: GenerateSettings = Field(default_factory=GenerateSettings)
    source: SourceSettings = Field(default_factory=SourceSettings)
    lerobot: LerobotSettings = Field(default_factory=LerobotSettings)
    actions: ActionSettings = Field(default_factory=ActionSettings)
    video: VideoSettings = Field(default_factory=VideoSettings)
    shards: ShardSettings = Field(default_factory=ShardSettings)
    latents: LatentSettings = Field(default_factory=LatentSettings)


def load_pipeline(name: str, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a pipeline by path or shipped name, with `section.key=value` overrides applied.

    Raises ConfigError listing every problem at once.
    """
    path = find_toml(name, "pipelines")
    return parse(Pipeline, apply_overrides(read_table(path), overrides), origin=str(path))
