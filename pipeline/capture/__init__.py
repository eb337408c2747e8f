"""One pass through the model: which tokens are read, what is read from them, and the parts that are written.

``tokens`` places texts and chats in tokens, ``reading`` runs the layers, ``caching`` plans batches and writes parts.
"""
