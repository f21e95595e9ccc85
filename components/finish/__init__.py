"""The exit task."""
