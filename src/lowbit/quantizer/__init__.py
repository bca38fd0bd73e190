"""The mathematics: the fake quantizer, its gradients and its initialization. Depends on torch alone."""
