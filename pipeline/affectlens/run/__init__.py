"""How results come to be: folders, locks, parts, workers, manifests and their verification."""
