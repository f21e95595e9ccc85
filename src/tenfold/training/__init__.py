"""The one training loop, what it trains, and its checkpoints."""
