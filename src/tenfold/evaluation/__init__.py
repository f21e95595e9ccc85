"""How good the networks are: metrics with intervals, probes on features, and the ladder's figures."""
