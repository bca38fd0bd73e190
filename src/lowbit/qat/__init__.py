"""Float model → model with quantizers, initialized from data and ready for a training loop."""
