"""What a run may be told, checked before anything is loaded.

May import nothing but `errors`, `question` and itself. Begin with `settings` (which keys there are), then
`check`.
"""
