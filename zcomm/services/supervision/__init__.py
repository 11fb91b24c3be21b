"""One supervisor for any server process: launched, watched, restarted, stopped and found again."""
