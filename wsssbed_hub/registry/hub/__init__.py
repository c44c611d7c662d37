"""A namespace of the Hugging Face Hub as a registry."""
