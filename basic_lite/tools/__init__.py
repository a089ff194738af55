"""What is not training: dry run, evaluation, asking a trained model."""
