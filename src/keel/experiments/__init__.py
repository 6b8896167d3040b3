"""Whole stories run through the recipes: the demonstration, and the sandbox's base model."""
