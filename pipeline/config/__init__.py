"""What is asked: typed configs, their composition by Hydra, and the trials of a sweep."""
