"""Search strategies: each turns a space and a budget into plans worth having."""
