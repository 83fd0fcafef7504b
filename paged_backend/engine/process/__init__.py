"""An engine in a process of its own: what is stepped runs there, its front desk here."""
