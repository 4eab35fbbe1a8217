"""The state in a forward pass: padding and segments, the cache, sequences sharded over processes."""
