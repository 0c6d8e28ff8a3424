"""Is this gradient right? One function, `check_gradient`, that asks for no step and no tolerance."""
