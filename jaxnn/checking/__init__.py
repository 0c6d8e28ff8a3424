"""Is this gradient right, and if not, where? `check_gradient` asks for no tolerance."""
