"""The networks of the papers, and how a trained one is kept on disk."""
