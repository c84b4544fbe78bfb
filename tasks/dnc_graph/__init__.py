"""Questions about random graphs with a Differentiable Neural Computer (Nature 538, 471-476): traversal, shortest
path, inference.
"""
