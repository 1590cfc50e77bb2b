"""What a model on disk is: headers, shape, format, and what it expects next."""
