"""Realise a plan in a model. The only folder that touches peft's internals."""
