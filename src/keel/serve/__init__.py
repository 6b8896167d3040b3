"""An OpenAI-compatible endpoint for a local model, with the Assistant Axis per request, and its chat page."""

from keel.serve.command import ServeConfig, run

__all__ = ["ServeConfig", "run"]
