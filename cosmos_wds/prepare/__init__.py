"""A pipeline's second half: recordings -> shards (run.py), and shards -> latents (latents.py)."""

from cosmos_wds.prepare.run import shard

__all__ = ["shard"]
