"""What commands may say, and what answers them: functions, pages, files, rows."""
