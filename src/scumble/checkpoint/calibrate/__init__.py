"""`convert --calibrate`: what goes through a model's layers on sample texts, so that rounding can go by it.

texts reads the file; samples makes contexts and noisy canvases of it; stream runs them through the checkpoint, one
layer in memory at a time; watch gathers what the linear layers of one are given; formats/compensate.py rounds by that.
"""
