"""The request bodies: their fields, which of them we have, and what a wrong one is answered with."""
