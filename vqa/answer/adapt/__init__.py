"""Test-time adaptation: methods that look at unlabelled test questions before they answer.

May import model and what lies below it. Begin with `method` (what one gets and gives), then `loop`, then one
of `weight_methods`, `prompt_methods`, `picture_methods`.
"""
