"""The self_train stage."""
