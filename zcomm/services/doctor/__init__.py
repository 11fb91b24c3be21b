"""What is on this machine and what of it is wrong: an inventory, and findings about it."""
