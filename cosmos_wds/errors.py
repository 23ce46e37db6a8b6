"""The error tree. The command line prints one clear line for each and ends with exit code 1.

UserError               anything that a user can cause and mend
├── ConfigError         a recipe, a pipeline or a command-line option
├── DataError           recordings, videos, annotations, shards
├── CheckpointError     weights and run state: missing, damaged, of another size
└── DownloadError       the network, a server, a checksum, the free disk

A message says what is wrong, where (file, key, episode), and what to do. What only a
programmer can cause is an `assert`.
"""


class UserError(Exception):
    """Base of every error that is the user's to mend; the message is shown without a traceback."""


class ConfigError(UserError):
    """A recipe, a pipeline or a command-line option says something that cannot be done."""


class DataError(UserError):
    """A recording, video, annotation or shard is missing, damaged or inconsistent."""


class CheckpointError(UserError):
    """Weights or run state are missing, damaged, or belong to another model or run."""


class DownloadError(UserError):
    """A download failed in a way that trying again by itself does not mend."""
