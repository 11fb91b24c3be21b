"""Models, and the databases behind them."""
