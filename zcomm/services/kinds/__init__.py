"""The kinds of services there are, a folder or module each: all that is particular to one stands there."""
