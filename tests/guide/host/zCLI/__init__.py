"""A small zCLI: what a host of zComm is, and no more."""
