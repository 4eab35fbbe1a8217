"""Models from recorded data: Markov parameters, ERA, subspace methods, output error."""
