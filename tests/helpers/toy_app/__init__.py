"""A Hydra app of milliseconds with the same outside as vqa.run, to try the sweeper on."""
