"""The pseudo_label stage."""
