"""A study's model served: read, steered, and spoken to by the clients that people already have."""
