"""Mixed-precision training on a CPU with native kernels: what autocast computes, in fewer and larger steps."""
