"""What a record tells of a model: standard errors, tests of residuals, and warnings about the inputs."""
