"""What makes the LLM fast; knows tensors, not text."""
