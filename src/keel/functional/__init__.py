"""The arithmetic: tensors in, tensors out. Imports nothing else of keel."""
