"""Cumulative parity (arXiv 2505.05522, section 6 and appendix G): at every position, is the number of -1 so
far odd?

Letters: B batch, S positions, T ticks, h heads.
"""
