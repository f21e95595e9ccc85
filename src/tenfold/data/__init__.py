"""Images from where they are, to verified shards with a manifest, to samples in a repeatable order."""
