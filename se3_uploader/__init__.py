"""se3_uploader: sends every event of an SE3 AI mini machine, and its state, to a platform."""

__version__ = "1.0.0"
