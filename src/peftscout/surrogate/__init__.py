"""Surrogate models for Bayesian optimisation with a known cost. Pure: numpy and scipy only."""
