"""Who may come in and how much each may ask for: keys, limits and counts. No web framework, no engine."""
