"""bAbI (arXiv 1502.05698) with a Differentiable Neural Computer: stories read word by word, and questions
about them.
"""
