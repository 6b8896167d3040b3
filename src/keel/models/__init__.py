"""transformers on one side, tensors on the other."""
