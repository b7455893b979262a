"""The networks of *Deep Residual Learning* (He et al., arXiv 1512.03385), written to be read."""
