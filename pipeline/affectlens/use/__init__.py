"""A finished study in use: texts read by its directions and features, its model steered by them."""
