"""Other people's programs at the same job, each in an environment of its own."""
