"""The machine below the services: accounts, directories, locks, log files, programs and processes."""
