"""What ``live.py`` measures live queries with."""
