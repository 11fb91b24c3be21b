"""The doctor: an inventory of this machine's servers and services, and findings about it."""
