"""Worker processes: who starts them, who keeps them up, and what each says of itself.

A worker's own work, trial after trial, is `vqa.sweep.worker`. May import the study and what lies below it.
"""
