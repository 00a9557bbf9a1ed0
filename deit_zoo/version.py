"""The version, also read by the build and by hubconf.py."""

__version__ = "0.1.0"
