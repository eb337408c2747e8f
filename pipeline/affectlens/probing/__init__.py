"""What activations say about concepts: readouts, features against concepts, their nulls and their confounds.

Everything here works on arrays; the stages bring them.
"""
