"""Engines: what carries broadcasts between the servers that belong together."""
