"""From logits to tokens. A row's tokens depend on its own logits, parameters and seed alone, bit for bit."""
