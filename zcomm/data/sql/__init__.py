"""Plans and filters to SQL, and the tables that it is about."""
