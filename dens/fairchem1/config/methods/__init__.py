"""What each method of training asks of a config."""
