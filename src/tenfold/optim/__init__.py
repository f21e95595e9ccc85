"""Optimizers and schedules of the papers."""
