"""Float model → model with quantizers, started from data and ready for a training loop."""
