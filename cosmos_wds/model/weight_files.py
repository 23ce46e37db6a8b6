"""Files of weights -> named tensors: memory-mapped, never unpickled, whatever wrote them.

    model.pt, iter_*_{reg,ema}_model.pt     torch.save of a flat dictionary, or {"model": it, ...}
    *.safetensors                           one file
    *.safetensors.index.json                several, as the index lists them

Tensors refer to the file until they are copied, so reading costs neither time nor memory.
"""

import ctypes
import io
import json
import mmap
import pickle
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cosmos_wds.errors import CheckpointError
from cosmos_wds.model.names import BAGGAGE

INDEX = ".safetensors.index.json"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file of weights, under the names in it.

    Raises CheckpointError when the file is missing, damaged, holds code, or holds numbers that are
    not plain floats (TransformerEngine's `_extra_state` and position ranges are let through).
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint file")
    if path.name.endswith(INDEX):
        state = _read_sharded(path)
    elif path.suffix == ".safetensors":
        state = _read_safetensors(path)
    else:
        state = _flat(load_pt(path), path)
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS and not BAGGAGE.search(name):
            raise CheckpointError(
                f"{path}: {name} holds {str(tensor.dtype).removeprefix('torch.')}, not plain "
                "floating point; quantised weights cannot be used, take the original ones"
            )
    return state


def load_pt(path: Path) -> Any:
    """Read a .pt file onto the CPU, memory-mapped where its format allows; runs no code from it.

    Raises CheckpointError for a file that is missing, cut short, or holds more than plain data.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({asked[1]})" if asked else ""
        raise CheckpointError(
            f"{path}: holds more than tensors{what} and was not opened, since unpickling it could "
            "run code; convert it to safetensors on a machine that you trust"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(path, error) from None


def _load(path: Path) -> Any:
    # TransformerEngine's `_extra_state` entries may be in-memory files, which hold bytes only.
    with warnings.catch_warnings(), torch.serialization.safe_globals([io.BytesIO]):
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used with files saved with" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    size = path.stat().st_size if path.is_file() else 0
    return CheckpointError(
        f"{path}: not a checkpoint, or a damaged one ({size} bytes): {reason}; fetch or save it "
        "again"
    )


def _flat(state: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]  # the reference's DDP checkpointer: {"model": ..., "ema": ...}
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: not a dictionary of tensors but a {type(state).__name__}")
    named = {str(k): v for k, v in state.items()}
    others = [k for k, v in named.items() if not isinstance(v, Tensor) and not BAGGAGE.search(k)]
    if others:
        raise CheckpointError(
            f"{path}: {others[0]} is a {type(named[others[0]]).__name__}, not a tensor; name a "
            "file of weights, not of a run's state"
        )
    return {k: v for k, v in named.items() if isinstance(v, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _read_sharded(path: Path) -> dict[str, Tensor]:
    """All tensors that an index lists; each file must be there and hold its share."""
    try:
        files: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shares = {
            file: {name for name, where in files.items() if where == file}
            for file in sorted(set(files.values()))
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    state: dict[str, Tensor] = {}
    for file, names in shares.items():
        shard = path.parent / file
        if Path(file).name != file:
            raise CheckpointError(f"{path}: lists {file!r}, which is not a file beside it")
        if not shard.is_file():
            raise CheckpointError(
                f"{shard}: missing; {path.name} says that it holds {len(names)} of {len(files)} "
                "tensors; fetch it again"
            )
        held = _read_safetensors(shard)
        lacking = sorted(names - held.keys())
        if lacking:
            raise CheckpointError(
                f"{shard}: lacks {len(lacking)} tensors that {path.name} lists, first "
                f"{lacking[0]}; fetch it again"
            )
        state |= {name: held[name] for name in sorted(names)}
    return state


def let_go(tensor: Tensor) -> None:
    """Tell the system that a copied tensor's file pages are not needed in memory now.

    Without it a checkpoint counts twice while it is loaded: as the copies, and as the mapped file.
    It changes no data: for memory that is not a file's, or not on Linux, it does nothing.
    """
    if sys.platform != "linux" or tensor.device.type != "cpu":
        return
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    page = mmap.PAGESIZE
    first, last = -(-start // page) * page, end // page * page
    if last > first:
        _MADVISE(ctypes.c_void_p(first), ctypes.c_size_t(last - first), _PAGEOUT)


_PAGEOUT = 21  # MADV_PAGEOUT, Linux 5.4 and later; an older kernel refuses, and nothing is lost
_MADVISE = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
