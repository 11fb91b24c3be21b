"""The built-in commands and their responders: functions, pages, files, rows."""
