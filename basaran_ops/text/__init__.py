"""Strings and token ids. No tensors: the server's process runs this without torch."""
