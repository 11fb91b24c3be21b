"""The old server object under the name that programs of the original import."""

from zcomm.legacy import ZSocket

__all__ = ["ZSocket"]
