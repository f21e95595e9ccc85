"""The shard stage."""
