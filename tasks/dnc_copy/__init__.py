"""Copy with a Differentiable Neural Computer: repeat a sequence of random vectors after it has ended."""
