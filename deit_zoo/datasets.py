"""Moved to `deit_zoo.data`; this name goes in 0.3."""

import warnings

from deit_zoo.data.folder import FolderSet, class_folders
from deit_zoo.data.image_set import open_set
from deit_zoo.data.survey import scan

warnings.warn("deit_zoo.datasets has moved; use deit_zoo.data", DeprecationWarning, stacklevel=2)

__all__ = ["FolderSet", "class_folders", "open_set", "scan"]
