"""Where models come from: MODEL becomes a checkpoint on local disk, fetched or converted if need be."""

from .resolve import resolve

__all__ = ["resolve"]
