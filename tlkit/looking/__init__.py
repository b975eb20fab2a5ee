"""Show what a network sees: its filters, what excites its channels, and the activations of an image."""
