"""Embedded texts and ratings (CC0), how texts are read, and the gates that judge them."""
