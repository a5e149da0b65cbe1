"""The engine: token ids and tensors. No text, no threads, no queues."""
