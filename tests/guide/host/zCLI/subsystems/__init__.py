"""Where the original has its subsystems."""
