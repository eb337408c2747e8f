"""Every feature, concept and text of a finished study on pages of their own, in one file that opens from disk."""
