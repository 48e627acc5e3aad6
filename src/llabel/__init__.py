"""llabel: a labelled table becomes an LLM text classifier, scored on rows it never saw."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llabel.estimator import LLMClassifier
    from llabel.presets import classifier_preset as preset

__all__ = ["LLMClassifier", "__version__", "preset"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import these when they are asked for, so that `llabel --help` stays fast (PEP 562)."""
    if name == "LLMClassifier":
        from llabel.estimator import LLMClassifier

        return LLMClassifier
    if name == "preset":
        from llabel.presets import classifier_preset

        return classifier_preset
    raise AttributeError(f"module 'llabel' has no attribute {name!r}")
