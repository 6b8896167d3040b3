"""keel: from raw human preferences to an aligned, monitored language model."""

__version__ = "0.1.0"
