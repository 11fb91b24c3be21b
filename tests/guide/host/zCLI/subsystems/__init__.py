"""The place at which the original has its subsystems."""
