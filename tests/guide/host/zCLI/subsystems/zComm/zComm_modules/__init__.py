"""The place at which the original has the parts of zComm."""
