"""The changes of a PostgreSQL database, which triggers log."""
