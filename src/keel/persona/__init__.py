"""The persona of a model as a direction in its states: find it, read it, hold it."""
