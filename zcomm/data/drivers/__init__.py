"""The databases behind the store: SQLite and PostgreSQL, their connections and their outages."""
