"""From prompts to responses, and from scores to credit."""
