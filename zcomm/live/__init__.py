"""Live queries: the rows that match, now and from now on."""
