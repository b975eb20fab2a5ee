"""Which way of transfer fits a set of images: facts, evidence for every stage, and what follows from them."""
