"""Configuration files; a package so that Hydra finds them from an installed copy too."""
