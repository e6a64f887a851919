"""Training, evaluation, prediction: the loops that run a model on data."""
