"""How the embedded tiny base model is made: `python -m pretrain.train OUT`."""
