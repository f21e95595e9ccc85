"""The DAGs, and the ways to compile and run them."""
