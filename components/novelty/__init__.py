"""The novelty stage."""
