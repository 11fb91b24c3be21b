"""What the machine offers and forbids: accounts, directories, locks, log files, programs and processes."""
