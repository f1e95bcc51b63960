"""Parity: Scumble against `transformers` on random checkpoints. `tests/oracle.py` explains the method."""
