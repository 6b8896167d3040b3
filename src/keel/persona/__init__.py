"""The Assistant Axis: a direction in the residual stream, found, watched, steered by and capped."""
