"""From images to bundle."""
