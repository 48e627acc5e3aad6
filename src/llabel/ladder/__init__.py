"""One file a rung; each maps texts to class probabilities."""
