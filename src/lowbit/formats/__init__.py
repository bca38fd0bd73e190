"""File formats an integer network is written in: one module each, made from `lowbit.integer.ir` alone."""
