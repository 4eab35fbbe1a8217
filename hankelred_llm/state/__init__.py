"""The state in a forward pass: padding and documents, the cache, sequences over several processes."""
