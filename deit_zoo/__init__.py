"""Data-efficient image Transformers, exact and verified. Each name is imported at its first use:
so that the command line can heed a Ctrl-C while it imports them, and none imports torch."""

from deit_zoo.version import __version__

TYPE_CHECKING = False  # as typing has it, which takes thirty milliseconds to import
if TYPE_CHECKING:
    from deit_zoo import errors as errors
    from deit_zoo.api import (
        attention_map,
        classify,
        compare_answers,
        evaluate,
        export,
        fetch,
        finetune,
        optimize,
        reproduce,
        save,
        verify,
    )
    from deit_zoo.facts.model import ModelInfo
    from deit_zoo.results import Evaluation, Prediction
    from deit_zoo.zoo import create, info, list_models, transform

__all__ = [
    "Evaluation",
    "ModelInfo",
    "Prediction",
    "__version__",
    "attention_map",
    "classify",
    "compare_answers",
    "create",
    "evaluate",
    "export",
    "fetch",
    "finetune",
    "info",
    "list_models",
    "optimize",
    "reproduce",
    "save",
    "transform",
    "verify",
]
_ZOO = ("ModelInfo", "create", "info", "list_models", "transform")
_RESULTS = ("Evaluation", "Prediction")

if not TYPE_CHECKING:  # which would take any name for one of ours

    def __getattr__(name: str) -> object:
        """A public name, or a module of the package."""
        from importlib import import_module
        from importlib.util import find_spec

        home = "zoo" if name in _ZOO else "results" if name in _RESULTS else "api"
        if name in __all__:
            value = globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
            return value
        if find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted((*__all__, "errors"))
