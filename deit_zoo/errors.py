"""What can go wrong, and nothing else: every message is one sentence for the person who typed."""


class ZooError(Exception):
    """The base of all errors that a user can mend; the command line prints it and exits 2."""


class UnknownModelError(ZooError):
    """No model has this name."""


class CheckpointError(ZooError):
    """A checkpoint, or the manifest that describes it, does not fit what was asked for."""


class DownloadError(ZooError):
    """A file could not be fetched from any of its sources."""


class IntegrityError(ZooError):
    """A file's bytes are not those that its digest promises."""


class FormatError(ZooError, ValueError):
    """A file, or a text of its kind, is not what its reader takes: no JSON, too large, no file."""


class OfflineError(ZooError):
    """A file is not on this machine and the network may not be used."""


class ImageSizeError(ZooError):
    """An image size does not fit the model."""


class DataError(ZooError):
    """An image or a folder of images cannot be used as it is."""


class RecipeError(ZooError):
    """A recipe, or a change asked of it, makes no sense."""


class MissingExtraError(ZooError):
    """A part that is installed separately is needed."""


class DifferenceError(ZooError):
    """An exported file answers otherwise than its model."""
