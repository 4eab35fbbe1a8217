"""Models with a description of the disturbance: autoregressive, and in innovations form."""
