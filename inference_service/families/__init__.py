"""One torch-free module for each family of models: its configuration files, its settings, its tensor names."""
