"""All that zComm knows of PostgreSQL: clusters, pid files, what it says and how it is stopped."""
