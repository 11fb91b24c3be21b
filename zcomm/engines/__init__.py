"""Engines, which carry broadcasts between the servers that belong together."""
