"""The supported families of models: a package for each, a registry, and what they share."""
