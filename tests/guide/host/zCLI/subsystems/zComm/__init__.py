"""zComm under the name that programs of the original import."""

from zcomm.threaded import zComm

__all__ = ["zComm"]
