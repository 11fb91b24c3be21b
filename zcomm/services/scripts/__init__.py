"""Programs that a bare interpreter runs beside or before a server; they import nothing of zComm."""
