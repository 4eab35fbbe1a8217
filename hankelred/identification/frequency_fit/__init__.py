"""Models from frequency responses: Loewner matrices and pole relocation, refined by least squares."""
