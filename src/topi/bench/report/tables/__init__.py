"""Tables of results: the frames behind them and their text."""
