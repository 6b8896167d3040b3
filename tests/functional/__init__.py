"""A package, so that a function and the recipe of its name can both have a test_NAME.py."""
