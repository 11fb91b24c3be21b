"""The changes of a SQLite database, which triggers log."""
