"""The papers' losses, one a file."""
