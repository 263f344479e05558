"""Tasks: data from anywhere, splits that keep their promises, tokenising, heads and metrics."""
