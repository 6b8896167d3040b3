"""How good a reward model is: scores of labelled pairs, and what they say."""
