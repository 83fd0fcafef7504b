"""Structured output: from a constraint to the tokens that a sample may draw next. llguidance knows the grammars."""
