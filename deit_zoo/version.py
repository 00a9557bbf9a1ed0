"""The version, also read by the build and by hubconf.py."""

__version__ = "0.1.0"
# Servers of pictures answer 403 to a client that does not name itself.
USER_AGENT = f"deit_zoo/{__version__} (image classification; python-requests)"
