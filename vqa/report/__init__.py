"""Pages and pictures for people, drawn from the files in results alone.

May import answer and what lies below. Begin with `report`, then `facts` and `page`; the
templates lie in `vqa/assets/page/`.
"""
