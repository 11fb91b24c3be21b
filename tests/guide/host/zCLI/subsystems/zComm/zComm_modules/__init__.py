"""Where the original has the parts of zComm."""
