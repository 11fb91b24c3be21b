"""Plain HTTP on the WebSocket port: the page, the health report and the metrics."""
