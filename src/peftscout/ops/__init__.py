"""PEFT families: one file an op, parametrised once and realised by the tuner, the supernet and the stacked evaluator."""
