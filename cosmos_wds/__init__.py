"""cosmos-wds: from robot videos with actions to a world model that you can drive.

Importing the package costs nothing: no torch, no settings, no side effects.
"""

__version__ = "0.1.0"
