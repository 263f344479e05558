"""Training: the loop and the evaluator that turns (plan, fidelity, seed) into an Outcome."""
