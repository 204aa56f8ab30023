"""A small world of fictitious authors, on which the bundled models are trained and measured."""
