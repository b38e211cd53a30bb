"""What is asked of a trained detector: is it invariant, is it Gaussian, who else does it, what does it cost."""
