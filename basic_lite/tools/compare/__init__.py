"""``basic-lite compare``: did one run answer the same questions better than another?"""
