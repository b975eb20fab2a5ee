"""Run exported graphs: sessions, providers, engines, and the model on top of them. Never torch."""
