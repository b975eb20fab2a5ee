"""Pages of one HTML file that needs no other: their form, style and pictures."""
