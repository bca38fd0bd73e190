"""The mathematics: grids, the fake quantizer, its gradients and where it starts. Depends on torch alone."""
