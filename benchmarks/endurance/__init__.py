"""Whether a study survives: workers killed, its database stopped and started.

`chaos` attacks a study, `study_damage` looks for what is lost, `own_postgresql` runs a database server. May
import harness.
"""
