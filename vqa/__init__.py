"""From a quiz CSV to the best fine-tuned vision-language model."""

__version__ = "0.1.0"
